//! Compression of record batches: which codecs there are, and decompression that stops at a limit.

mod lz4;

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use thiserror::Error;

/// How the records of a batch are compressed. The numbers are those of the Kafka v2 batch's attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// Not compressed.
    #[default]
    None = 0,
    /// One LZ4 frame with independent blocks.
    Lz4 = 3,
    /// One Zstandard frame.
    Zstd = 4,
}

impl Codec {
    /// All codecs.
    pub const ALL: [Codec; 3] = [Codec::None, Codec::Lz4, Codec::Zstd];

    /// The name used in configurations and on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }
}

impl TryFrom<u8> for Codec {
    type Error = u8;

    /// The codec with this number; the number itself if there is none.
    fn try_from(number: u8) -> Result<Codec, u8> {
        Codec::ALL.into_iter().find(|codec| *codec as u8 == number).ok_or(number)
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No codec has this name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown codec {0:?}; known are none, lz4 and zstd")]
pub struct UnknownCodecName(pub String);

impl FromStr for Codec {
    type Err = UnknownCodecName;

    fn from_str(name: &str) -> Result<Codec, UnknownCodecName> {
        Codec::ALL.into_iter().find(|codec| codec.name() == name).ok_or_else(|| UnknownCodecName(name.to_owned()))
    }
}

/// Why compressed bytes could not be decompressed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The content is longer than the caller allows; decompression stopped there.
    #[error("decompressed content exceeds the limit of {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The bytes are not what the codec writes.
    #[error("not a valid {codec} frame: {reason}")]
    Corrupt {
        /// The codec.
        codec: Codec,
        /// What is wrong, in words.
        reason: String,
    },
    /// Bytes follow the end of the compressed frame.
    #[error("{count} bytes follow the end of the {codec} frame")]
    TrailingBytes {
        /// The codec.
        codec: Codec,
        /// How many bytes follow.
        count: usize,
    },
}

/// The largest window that a Zstandard frame may ask for, as a power of two: 8 MiB, which the format's specification
/// names as what every decoder should support. It bounds the memory that a small hostile frame can claim.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// The Zstandard level for batches; the library's own default, near the knee of ratio against time.
const ZSTD_LEVEL: i32 = 3;

/// Whether it is certain, without decompressing it, that the content has at most `limit` bytes.
pub fn is_short(codec: Codec, input: &[u8], limit: usize) -> bool {
    /// A byte of an LZ4 block stands for no more.
    const LZ4_RATIO: usize = 255;
    match codec {
        Codec::None => input.len() <= limit,
        Codec::Lz4 => input.len().saturating_mul(LZ4_RATIO) <= limit,
        // Whose content is longer than its frame says is corrupt, which decompressing it finds out no later than there.
        Codec::Zstd => {
            let content = zstd::zstd_safe::get_frame_content_size(input).ok().flatten();
            content.is_some_and(|content| content <= limit as u64)
        }
    }
}

/// Decompresses one frame of at most `limit` bytes of content. For [`Codec::None`] that is a copy.
pub fn decompress(codec: Codec, input: &[u8], limit: usize) -> Result<Vec<u8>, CodecError> {
    match codec {
        Codec::None if input.len() > limit => Err(CodecError::TooLarge { limit }),
        Codec::None => Ok(input.to_vec()),
        Codec::Lz4 => lz4::decompress(input, limit),
        Codec::Zstd => zstd_decompress(input, limit),
    }
}

fn zstd_decompress(input: &[u8], limit: usize) -> Result<Vec<u8>, CodecError> {
    let corrupt = |error: io::Error| CodecError::Corrupt { codec: Codec::Zstd, reason: error.to_string() };
    let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(corrupt)?.single_frame();
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(corrupt)?;
    // A typical ratio; the buffer grows as content appears, so a hostile header buys nothing.
    let mut content = Vec::with_capacity(input.len().saturating_mul(4).min(limit));
    let allowed = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    decoder.by_ref().take(allowed).read_to_end(&mut content).map_err(corrupt)?;
    if content.len() > limit {
        return Err(CodecError::TooLarge { limit });
    }
    match decoder.finish().len() {
        0 => Ok(content),
        count => Err(CodecError::TrailingBytes { codec: Codec::Zstd, count }),
    }
}

/// Compresses batch after batch, keeping the codec's working memory between them.
#[derive(Default)]
pub struct Compressor {
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Compressor {
    /// A compressor that has no working memory yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `content`, compressed into one frame, to `out`. On an error (the codec found no memory) `out` is
    /// unchanged.
    pub fn compress(&mut self, codec: Codec, content: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        match codec {
            Codec::None => out.extend_from_slice(content),
            Codec::Lz4 => lz4::compress(content, out),
            Codec::Zstd => {
                let zstd = match &mut self.zstd {
                    Some(zstd) => zstd,
                    empty => empty.insert(zstd::bulk::Compressor::new(ZSTD_LEVEL)?),
                };
                let start = out.len();
                out.resize(start + zstd::zstd_safe::compress_bound(content.len()), 0);
                let written = zstd.compress_to_buffer(content, &mut out[start..]);
                out.truncate(start + *written.as_ref().unwrap_or(&0));
                written?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}
