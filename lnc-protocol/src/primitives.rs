//! The alphabet of message bodies: little-endian integers, strings, byte strings, options and lists, each with a
//! bounded reader.
//!
//! | value | on the wire |
//! |---|---|
//! | integer | little-endian, fixed width |
//! | bool | `u8`, 0 or 1 |
//! | string | `u16` length in bytes, then UTF-8 |
//! | bytes | `u32` length, then the bytes |
//! | option | `u8` 0 (absent) or 1 (present), then the value if present |
//! | list | `u32` count, then the items |
//!
//! A list's count is compared with what the remaining bytes can hold *before* anything is allocated for it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::error::ErrorCode;

/// The most items that a list may have, whatever the size of its items. Bounds what a body full of empty items can
/// make a receiver allocate.
pub const MAX_LIST_LEN: usize = 1 << 20;

/// Why a message body could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The body ends inside a value.
    #[error("body ends early: {needed} bytes needed, {remaining} left")]
    Truncated {
        /// Bytes that the value needs.
        needed: usize,
        /// Bytes that were left.
        remaining: usize,
    },
    /// A list claims more items than the rest of the body could hold, or than [`MAX_LIST_LEN`].
    #[error("a list of {count} items cannot be held by the {remaining} bytes left")]
    ListTooLong {
        /// The claimed count of items.
        count: usize,
        /// Bytes that were left.
        remaining: usize,
    },
    /// A string is not UTF-8.
    #[error("a string is not UTF-8 from its byte {valid_up_to} on")]
    InvalidUtf8 {
        /// How many bytes of the string are valid.
        valid_up_to: usize,
    },
    /// A value with few legal forms has another one.
    #[error("{value} is not a legal {what}")]
    InvalidValue {
        /// The kind of value.
        what: &'static str,
        /// What was found.
        value: u64,
    },
    /// The body goes on after the message.
    #[error("{count} bytes follow the end of the message")]
    TrailingBytes {
        /// How many bytes follow.
        count: usize,
    },
    /// No request has this number.
    #[error("opcode {0} is not known")]
    UnknownOpcode(u8),
}

impl DecodeError {
    /// The code under which to report this error to the peer.
    pub fn code(&self) -> ErrorCode {
        match self {
            DecodeError::UnknownOpcode(_) => ErrorCode::UnknownOpcode,
            _ => ErrorCode::InvalidRequest,
        }
    }
}

/// Reads values off the front of a body, by way of [`Wire::decode`]. Byte strings are slices of the body, not copies.
#[derive(Debug)]
pub struct Reader {
    rest: Bytes,
}

impl Reader {
    /// A reader at the start of `body`.
    pub fn new(body: Bytes) -> Self {
        Self { rest: body }
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Takes the next `len` bytes without copying them.
    pub fn take(&mut self, len: usize) -> Result<Bytes, DecodeError> {
        self.require(len)?;
        Ok(self.rest.split_to(len))
    }

    /// Ends reading; whatever was not read is an error.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(DecodeError::TrailingBytes { count }),
        }
    }

    fn require(&self, needed: usize) -> Result<(), DecodeError> {
        let remaining = self.rest.len();
        if remaining < needed { Err(DecodeError::Truncated { needed, remaining }) } else { Ok(()) }
    }
}

/// A value with a fixed form on the wire.
pub trait Wire: Sized {
    /// The fewest bytes that a value of this type takes; at least 1.
    const MIN_LEN: usize;

    /// Appends the value.
    fn encode(&self, out: &mut BytesMut);

    /// Reads a value.
    fn decode(reader: &mut Reader) -> Result<Self, DecodeError>;
}

/// Decodes a body that is exactly one `T`.
pub fn decode_all<T: Wire>(body: Bytes) -> Result<T, DecodeError> {
    let mut reader = Reader::new(body);
    let value = T::decode(&mut reader)?;
    reader.finish()?;
    Ok(value)
}

macro_rules! wire_integer {
    ($($type:ty: $put:ident, $get:ident;)*) => {$(
        impl Wire for $type {
            const MIN_LEN: usize = size_of::<$type>();

            fn encode(&self, out: &mut BytesMut) {
                out.$put(*self);
            }

            fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
                reader.require(size_of::<$type>())?;
                Ok(reader.rest.$get())
            }
        }
    )*};
}

wire_integer! {
    u8: put_u8, get_u8;
    u16: put_u16_le, get_u16_le;
    u32: put_u32_le, get_u32_le;
    u64: put_u64_le, get_u64_le;
    u128: put_u128_le, get_u128_le;
    i16: put_i16_le, get_i16_le;
    i64: put_i64_le, get_i64_le;
}

impl Wire for bool {
    const MIN_LEN: usize = 1;

    fn encode(&self, out: &mut BytesMut) {
        out.put_u8(u8::from(*self));
    }

    fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        match u8::decode(reader)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::InvalidValue { what: "flag", value: u64::from(value) }),
        }
    }
}

impl Wire for String {
    const MIN_LEN: usize = 2;

    /// A string over 65,535 bytes is cut at a character boundary. That loses no meaning: only texts for humans get
    /// near that length; names and addresses are refused far below it, cut or not.
    fn encode(&self, out: &mut BytesMut) {
        let mut end = self.len().min(usize::from(u16::MAX));
        while !self.is_char_boundary(end) {
            end -= 1;
        }
        let text = &self[..end];
        // Cannot saturate after the cut above.
        out.put_u16_le(u16::try_from(text.len()).unwrap_or(u16::MAX));
        out.put_slice(text.as_bytes());
    }

    fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let len = u16::decode(reader)?;
        let bytes = reader.take(usize::from(len))?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(DecodeError::InvalidUtf8 { valid_up_to: error.valid_up_to() }),
        }
    }
}

impl Wire for Bytes {
    const MIN_LEN: usize = 4;

    fn encode(&self, out: &mut BytesMut) {
        put_len(out, self.len());
        out.put_slice(self);
    }

    fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let len = u32::decode(reader)?;
        reader.take(len as usize)
    }
}

impl<T: Wire> Wire for Option<T> {
    const MIN_LEN: usize = 1;

    fn encode(&self, out: &mut BytesMut) {
        self.is_some().encode(out);
        if let Some(value) = self {
            value.encode(out);
        }
    }

    fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        if bool::decode(reader)? { T::decode(reader).map(Some) } else { Ok(None) }
    }
}

impl<T: Wire> Wire for Vec<T> {
    const MIN_LEN: usize = 4;

    fn encode(&self, out: &mut BytesMut) {
        put_len(out, self.len());
        for item in self {
            item.encode(out);
        }
    }

    fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let count = u32::decode(reader)? as usize;
        let remaining = reader.remaining();
        if count > MAX_LIST_LEN || count > remaining / T::MIN_LEN {
            return Err(DecodeError::ListTooLong { count, remaining });
        }
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(T::decode(reader)?);
        }
        Ok(items)
    }
}

/// Appends a `u32` length. Lengths beyond it cannot be sent at all: [`crate::frame::encode`] refuses such a body.
pub(crate) fn put_len(out: &mut BytesMut, len: usize) {
    out.put_u32_le(u32::try_from(len).unwrap_or(u32::MAX));
}

/// Declares a message part: the struct itself and its wire form, which is its fields in the order written.
macro_rules! wire_struct {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$field_meta:meta])* pub $field:ident: $type:ty, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $type, )*
        }

        impl $crate::primitives::Wire for $name {
            const MIN_LEN: usize = 0 $( + <$type as $crate::primitives::Wire>::MIN_LEN )*;

            fn encode(&self, out: &mut bytes::BytesMut) {
                $( $crate::primitives::Wire::encode(&self.$field, out); )*
            }

            fn decode(
                reader: &mut $crate::primitives::Reader,
            ) -> Result<Self, $crate::primitives::DecodeError> {
                // Struct fields are evaluated in the order written, which is the order on the wire.
                Ok(Self { $( $field: $crate::primitives::Wire::decode(reader)?, )* })
            }
        }

        #[cfg(test)]
        impl $name {
            /// Names and types, for the comparison with the specification.
            pub(crate) const FIELDS: &'static [(&'static str, &'static str)] =
                &[$( (stringify!($field), stringify!($type)), )*];
        }

        #[cfg(test)]
        impl $crate::message::sample::Sample for $name {
            fn sample(entropy: &mut $crate::message::sample::Entropy<'_>) -> Self {
                Self { $( $field: $crate::message::sample::Sample::sample(entropy), )* }
            }
        }
    };
}
pub(crate) use wire_struct;
