//! Frames: the envelope of every request and reply on a connection.
//!
//! A frame is a 32-byte little-endian header and a body:
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | magic `0x3150574C`, "LWP1" on the wire |
//! | 4 | version |
//! | 5 | opcode |
//! | 6..8 | flags |
//! | 8..16 | correlation id, chosen by the requester, repeated in the reply |
//! | 16..20 | length of the body in bytes |
//! | 20..28 | reserved, 0 |
//! | 28..32 | CRC-32 (IEEE) of bytes 0..28 and of the body |
//!
//! The length is checked against the receiver's limit before the body is read; the checksum before the body is looked
//! at. After any [`FrameError`] the stream has no known frame boundary left, and the connection must be closed.

use std::ops::{BitOr, BitOrAssign};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::PROTOCOL_VERSION;
use crate::error::ErrorCode;

/// The length of a frame's header in bytes.
pub const HEADER_LEN: usize = 32;

/// The first four bytes of every frame, read as a little-endian integer.
pub const MAGIC: u32 = 0x3150_574C;

/// Where the checksum stands in the header; also how many bytes of the header it covers.
const CRC_AT: usize = 28;

/// The flags of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u16);

impl Flags {
    /// No flag.
    pub const NONE: Flags = Flags(0);
    /// The frame answers a request.
    pub const RESPONSE: Flags = Flags(1);
    /// The client wants `NotLeader` and a hint rather than being forwarded.
    pub const NO_FORWARD: Flags = Flags(2);
    /// A broker has forwarded this request; the receiver must not forward it again.
    pub const FORWARDED: Flags = Flags(4);
    /// A trace context precedes the request; see [`crate::trace`].
    pub const TRACED: Flags = Flags(8);

    /// Whoever took the request in has looked through its records already. It never travels: on the wire it has no meaning.
    pub const CHECKED: Flags = Flags(1 << 15);

    const KNOWN: u16 = Flags::RESPONSE.0 | Flags::NO_FORWARD.0 | Flags::FORWARDED.0 | Flags::TRACED.0;

    /// The flags with these bits, or `None` if one of them has no meaning.
    pub const fn from_bits(bits: u16) -> Option<Flags> {
        if bits & !Flags::KNOWN == 0 { Some(Flags(bits)) } else { None }
    }

    /// The bits on the wire.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Whether every flag of `other` is set.
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags but for those of `other`.
    pub const fn without(self, other: Flags) -> Flags {
        Flags(self.0 & !other.0)
    }
}

impl BitOr for Flags {
    type Output = Flags;

    fn bitor(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

impl BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Flags) {
        self.0 |= other.0;
    }
}

/// Why bytes are not a frame. Fatal for the connection that they came from.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The peer speaks something else.
    #[error("not an LWP frame: magic {found:#010x}, expected {MAGIC:#010x}")]
    BadMagic {
        /// The first four bytes, little-endian.
        found: u32,
    },
    /// The frame is of a version this crate does not speak.
    #[error("frame of version {found}, expected {PROTOCOL_VERSION}")]
    UnsupportedVersion {
        /// The version found.
        found: u8,
    },
    /// A flag without a meaning is set.
    #[error("frame with unknown flags: {bits:#06x}")]
    UnknownFlags {
        /// All flags found.
        bits: u16,
    },
    /// A reserved field is not 0.
    #[error("a reserved header field is {found:#x}, expected 0")]
    Reserved {
        /// The two reserved fields as one little-endian integer.
        found: u64,
    },
    /// The body is longer than the receiver accepts.
    #[error("frame body of {len} bytes is over the limit of {limit}")]
    TooLarge {
        /// The length that the header announces, in bytes.
        len: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The frame was damaged on its way.
    #[error("frame checksum {computed:#010x}, header says {stored:#010x}")]
    BadCrc {
        /// The checksum in the header.
        stored: u32,
        /// The checksum of what arrived.
        computed: u32,
    },
}

impl FrameError {
    /// The code under which to report this error to the peer before closing.
    pub fn code(&self) -> ErrorCode {
        match self {
            FrameError::UnsupportedVersion { .. } => ErrorCode::UnsupportedVersion,
            FrameError::TooLarge { .. } => ErrorCode::FrameTooLarge,
            _ => ErrorCode::CorruptFrame,
        }
    }
}

/// The header of a frame. The opcode is not interpreted here: an unknown one deserves a reply, not a closed connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The protocol version.
    pub version: u8,
    /// The kind of request, also in its reply; see [`crate::message::Opcode`].
    pub opcode: u8,
    /// The flags.
    pub flags: Flags,
    /// Chosen by the requester, repeated in the reply.
    pub correlation: u64,
    /// The length of the body in bytes.
    pub body_len: u32,
    /// The checksum of header and body. Not yet verified when the header comes from [`FrameHeader::parse`].
    pub crc: u32,
}

impl FrameHeader {
    /// Reads the header at the start of `bytes`; `None` if it is not complete yet. A wrong magic is noticed from
    /// four bytes on. The checksum is not verified: that takes the body.
    pub fn parse(bytes: &[u8]) -> Result<Option<FrameHeader>, FrameError> {
        if let Some(magic) = bytes.first_chunk::<4>() {
            let found = u32::from_le_bytes(*magic);
            if found != MAGIC {
                return Err(FrameError::BadMagic { found });
            }
        }
        let Some(mut raw) = bytes.get(4..HEADER_LEN) else { return Ok(None) };
        let version = raw.get_u8();
        if version != PROTOCOL_VERSION {
            return Err(FrameError::UnsupportedVersion { found: version });
        }
        let opcode = raw.get_u8();
        let bits = raw.get_u16_le();
        let flags = Flags::from_bits(bits).ok_or(FrameError::UnknownFlags { bits })?;
        let correlation = raw.get_u64_le();
        let body_len = raw.get_u32_le();
        let reserved = raw.get_u64_le();
        if reserved != 0 {
            return Err(FrameError::Reserved { found: reserved });
        }
        Ok(Some(FrameHeader { version, opcode, flags, correlation, body_len, crc: raw.get_u32_le() }))
    }

    /// The length of the whole frame in bytes.
    pub fn total_len(&self) -> usize {
        HEADER_LEN + self.body_len as usize
    }
}

/// A frame that passed every check of the envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The header.
    pub header: FrameHeader,
    /// The body, a slice of the receive buffer.
    pub body: Bytes,
}

/// Takes one frame off the front of `buf`, without copying its body. `Ok(None)` means that more bytes must be read
/// first; [`needed`] says how many. Nothing is reserved here, and a body over `max_body` bytes is refused as soon as
/// its header has arrived.
pub fn decode(buf: &mut BytesMut, max_body: usize) -> Result<Option<Frame>, FrameError> {
    let Some(header) = FrameHeader::parse(buf)? else { return Ok(None) };
    let len = header.body_len as usize;
    if len > max_body {
        return Err(FrameError::TooLarge { len, limit: max_body });
    }
    if buf.len() < header.total_len() {
        return Ok(None);
    }
    let computed = crc(&buf[..CRC_AT], [&buf[HEADER_LEN..header.total_len()]]);
    if computed != header.crc {
        return Err(FrameError::BadCrc { stored: header.crc, computed });
    }
    let mut body = buf.split_to(header.total_len());
    body.advance(HEADER_LEN);
    Ok(Some(Frame { header, body: body.freeze() }))
}

/// How many bytes the frame at the start of `buf` has in all, or the header's length while that is not known. Call
/// it after [`decode`] returned `Ok(None)`, which means that the length is within the limit.
pub fn needed(buf: &[u8]) -> usize {
    match FrameHeader::parse(buf) {
        Ok(Some(header)) => header.total_len(),
        _ => HEADER_LEN,
    }
}

/// Appends a frame to `out`. The body is written in place by `body`, which must only append.
///
/// # Panics
/// If the body is over `u32::MAX` bytes; every limit on frames is a `u32` and far lower.
pub fn encode(
    out: &mut BytesMut,
    opcode: impl Into<u8>,
    flags: Flags,
    correlation: u64,
    body: impl FnOnce(&mut BytesMut),
) {
    let start = out.len();
    out.put_bytes(0, HEADER_LEN);
    body(out);
    let (header, body) = out[start..].split_at_mut(HEADER_LEN);
    header.copy_from_slice(&encode_header(opcode, flags, correlation, &[body]));
}

/// The header for a body that lies in several places, for callers that send header and pieces with one vectored
/// write.
///
/// # Panics
/// If the body is over `u32::MAX` bytes; every limit on frames is a `u32` and far lower.
pub fn encode_header<P: AsRef<[u8]>>(
    opcode: impl Into<u8>,
    flags: Flags,
    correlation: u64,
    body: &[P],
) -> [u8; HEADER_LEN] {
    let len: usize = body.iter().map(|piece| piece.as_ref().len()).sum();
    let body_len = u32::try_from(len).expect("a frame body is limited to u32::MAX bytes");
    let mut header = [0; HEADER_LEN];
    let mut at = &mut header[..];
    at.put_u32_le(MAGIC);
    at.put_u8(PROTOCOL_VERSION);
    at.put_u8(opcode.into());
    at.put_u16_le(flags.bits());
    at.put_u64_le(correlation);
    at.put_u32_le(body_len);
    let crc = crc(&header[..CRC_AT], body);
    header[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    header
}

fn crc<P: AsRef<[u8]>>(header: &[u8], body: impl IntoIterator<Item = P>) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    for piece in body {
        hasher.update(piece.as_ref());
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1024;

    fn ping(correlation: u64, body: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        encode(&mut out, 2, Flags::NO_FORWARD, correlation, |out| out.put_slice(body));
        out
    }

    #[test]
    fn frames_come_off_one_by_one_however_they_arrive() {
        let mut wire = ping(1, b"one");
        wire.unsplit(ping(2, b""));
        wire.unsplit(ping(3, b"three"));
        let mut buf = BytesMut::new();
        let mut frames = Vec::new();
        for &byte in &wire {
            buf.put_u8(byte);
            frames.extend(decode(&mut buf, LIMIT).unwrap());
        }
        assert!(buf.is_empty());
        let seen: Vec<_> = frames.iter().map(|frame| (frame.header.correlation, &frame.body[..])).collect();
        assert_eq!(seen, [(1, &b"one"[..]), (2, b""), (3, b"three")]);
        assert!(frames.iter().all(|frame| frame.header.opcode == 2 && frame.header.flags == Flags::NO_FORWARD));
    }

    #[test]
    fn needed_says_how_much_to_read() {
        let wire = ping(1, b"hello");
        assert_eq!(needed(&[]), HEADER_LEN);
        assert_eq!(needed(&wire[..HEADER_LEN - 1]), HEADER_LEN);
        assert_eq!(needed(&wire[..HEADER_LEN]), HEADER_LEN + 5);
    }

    #[test]
    fn the_body_is_not_copied() {
        let mut wire = ping(1, &[7; 100]);
        let at = wire[HEADER_LEN..].as_ptr();
        let frame = decode(&mut wire, LIMIT).unwrap().unwrap();
        assert_eq!(frame.body.as_ptr(), at);
    }

    #[test]
    fn a_body_over_the_limit_is_refused_on_its_header_alone() {
        let wire = ping(1, &[0; LIMIT + 1]);
        let mut head = BytesMut::from(&wire[..HEADER_LEN]);
        let capacity = head.capacity();
        assert_eq!(decode(&mut head, LIMIT), Err(FrameError::TooLarge { len: LIMIT + 1, limit: LIMIT }));
        assert_eq!(head.capacity(), capacity);
        assert_eq!(decode(&mut ping(1, &[0; LIMIT]), LIMIT).unwrap().unwrap().body.len(), LIMIT);
    }

    #[test]
    fn a_stranger_is_noticed_by_four_bytes() {
        let mut buf = BytesMut::from("GET ");
        assert_eq!(decode(&mut buf, LIMIT), Err(FrameError::BadMagic { found: u32::from_le_bytes(*b"GET ") }));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let wire = ping(0x0102_0304_0506_0708, b"some body");
        for bit in 0..wire.len() * 8 {
            let mut damaged = wire.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // A longer length leaves the frame incomplete; everything else is an error.
            let outcome = decode(&mut damaged, usize::MAX);
            let length_grew = (128..160).contains(&bit) && outcome == Ok(None);
            assert!(outcome.is_err() || length_grew, "bit {bit}: {outcome:?}");
        }
    }

    #[test]
    fn each_header_field_has_its_error() {
        let with = |at: usize, value: u8| {
            let mut wire = ping(1, b"");
            wire[at] = value;
            decode(&mut wire, LIMIT).unwrap_err()
        };
        assert_eq!(with(4, 9), FrameError::UnsupportedVersion { found: 9 });
        assert_eq!(with(6, 16), FrameError::UnknownFlags { bits: 16 });
        assert_eq!(with(20, 1), FrameError::Reserved { found: 1 });
        assert_eq!(with(27, 1), FrameError::Reserved { found: 1 << 56 });
        assert!(matches!(with(28, 1), FrameError::BadCrc { .. }));
        assert_eq!(with(4, 9).code(), ErrorCode::UnsupportedVersion);
        assert_eq!(with(0, 9).code(), ErrorCode::CorruptFrame);
    }

    #[test]
    fn pieces_and_whole_have_one_header() {
        let wire = ping(5, b"in pieces");
        let header = encode_header(2, Flags::NO_FORWARD, 5, &[&b"in "[..], b"", b"pieces"]);
        assert_eq!(header, wire[..HEADER_LEN]);
    }

    #[test]
    fn a_frame_is_appended_behind_what_is_there() {
        let mut out = BytesMut::from("before");
        encode(&mut out, 2, Flags::NO_FORWARD, 1, |out| out.put_slice(b"x"));
        assert_eq!(&out[..6], b"before");
        assert_eq!(out[6..], ping(1, b"x")[..]);
    }
}
