//! The LZ4 frame format, as Kafka v2 batches use it: one frame, independent blocks.
//!
//! Written out here on top of the block codec because a frame from a stranger must be bounded block by block, must end
//! where the batch ends, and must be readable by the consumers of other systems, which refuse linked blocks.

use bytes::Buf;
use twox_hash::XxHash32;

use super::{Codec, CodecError};

const MAGIC: u32 = 0x184D_2204;

/// What this crate writes: version 1, independent blocks, no checksums (the batch has its own CRC), blocks of 64 KiB.
const DESCRIPTOR: [u8; 2] = [0x60, 0x40];
const BLOCK_LEN: usize = 64 * 1024;

const FLAG_RESERVED: u8 = 0x02;
const FLAG_DICTIONARY: u8 = 0x01;
const FLAG_CONTENT_CHECKSUM: u8 = 0x04;
const FLAG_CONTENT_SIZE: u8 = 0x08;
const FLAG_BLOCK_CHECKSUM: u8 = 0x10;
const FLAG_INDEPENDENT: u8 = 0x20;

/// The bit of a block's length that says that the block is stored as it is.
const STORED: u32 = 1 << 31;

/// A block of `n` compressed bytes holds at most about `255 * n` bytes: each byte of a length extends a match by 255.
const MAX_EXPANSION: usize = 255;

/// What most blocks stay below.
const TYPICAL_EXPANSION: usize = 8;

pub(super) fn compress(content: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.extend_from_slice(&DESCRIPTOR);
    out.push(descriptor_checksum(&DESCRIPTOR));
    for block in content.chunks(BLOCK_LEN) {
        let start = out.len();
        out.resize(start + 4 + lz4_flex::block::get_maximum_output_size(block.len()), 0);
        let compressed = lz4_flex::block::compress_into(block, &mut out[start + 4..]).ok();
        let word = match compressed {
            Some(len) if len < block.len() => {
                out.truncate(start + 4 + len);
                len as u32
            }
            _ => {
                out.truncate(start + 4);
                out.extend_from_slice(block);
                block.len() as u32 | STORED
            }
        };
        out[start..start + 4].copy_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&0u32.to_le_bytes());
}

/// What the frame's descriptor says.
struct Descriptor {
    max_block: usize,
    block_checksum: bool,
    content_checksum: bool,
    content_len: Option<u64>,
}

pub(super) fn decompress(mut input: &[u8], limit: usize) -> Result<Vec<u8>, CodecError> {
    let descriptor = read_descriptor(&mut input)?;
    let mut content = Vec::with_capacity(input.len().saturating_mul(4).min(limit));
    loop {
        let word = read_u32(&mut input)?;
        if word == 0 {
            break;
        }
        read_block(word, &descriptor, &mut input, &mut content, limit)?;
    }
    if descriptor.content_checksum && read_u32(&mut input)? != hash(&content) {
        return Err(corrupt("content checksum mismatch"));
    }
    if descriptor.content_len.is_some_and(|len| len != content.len() as u64) {
        return Err(corrupt("content size differs from the frame's header"));
    }
    match input.len() {
        0 => Ok(content),
        count => Err(CodecError::TrailingBytes { codec: Codec::Lz4, count }),
    }
}

fn read_descriptor(input: &mut &[u8]) -> Result<Descriptor, CodecError> {
    if read_u32(input)? != MAGIC {
        return Err(corrupt("wrong magic"));
    }
    let all = *input;
    let fixed = take(input, 2)?;
    let (flags, block) = (fixed[0], fixed[1]);
    if flags >> 6 != 1 || flags & FLAG_RESERVED != 0 || block & 0x8F != 0 {
        return Err(corrupt("unknown version or reserved bits set"));
    }
    if flags & FLAG_DICTIONARY != 0 {
        return Err(corrupt("dictionaries are not supported"));
    }
    if flags & FLAG_INDEPENDENT == 0 {
        return Err(corrupt("linked blocks are not supported"));
    }
    let max_block = match block >> 4 {
        size @ 4..=7 => 1 << (2 * size + 8),
        _ => return Err(corrupt("unknown block size")),
    };
    let content_len = if flags & FLAG_CONTENT_SIZE != 0 { Some(take(input, 8)?.get_u64_le()) } else { None };
    let described = &all[..all.len() - input.len()];
    if take(input, 1)?[0] != descriptor_checksum(described) {
        return Err(corrupt("header checksum mismatch"));
    }
    Ok(Descriptor {
        max_block,
        block_checksum: flags & FLAG_BLOCK_CHECKSUM != 0,
        content_checksum: flags & FLAG_CONTENT_CHECKSUM != 0,
        content_len,
    })
}

fn read_block(
    word: u32,
    descriptor: &Descriptor,
    input: &mut &[u8],
    content: &mut Vec<u8>,
    limit: usize,
) -> Result<(), CodecError> {
    let len = (word & !STORED) as usize;
    if len > descriptor.max_block {
        return Err(corrupt("a block is over the frame's block size"));
    }
    let block = take(input, len)?;
    if descriptor.block_checksum && read_u32(input)? != hash(block) {
        return Err(corrupt("block checksum mismatch"));
    }
    let start = content.len();
    let room = limit - start;
    if word & STORED != 0 {
        if len > room {
            return Err(CodecError::TooLarge { limit });
        }
        content.extend_from_slice(block);
        return Ok(());
    }
    // One byte more than the room tells content of just the limit from content beyond it.
    let most = descriptor.max_block.min(len * MAX_EXPANSION + 64).min(room.saturating_add(1));
    // Room costs its clearing, and few blocks shrink as much as the format allows: try with less first.
    content.resize(start + most.min(len * TYPICAL_EXPANSION), 0);
    let mut written = lz4_flex::block::decompress_into(block, &mut content[start..]);
    if matches!(written, Err(lz4_flex::block::DecompressError::OutputTooSmall { .. })) {
        content.resize(start + most, 0);
        written = lz4_flex::block::decompress_into(block, &mut content[start..]);
    }
    let written = match written {
        Ok(written) => written,
        Err(lz4_flex::block::DecompressError::OutputTooSmall { .. }) if most > room => {
            return Err(CodecError::TooLarge { limit });
        }
        Err(error) => return Err(CodecError::Corrupt { codec: Codec::Lz4, reason: error.to_string() }),
    };
    if written > room {
        return Err(CodecError::TooLarge { limit });
    }
    content.truncate(start + written);
    Ok(())
}

/// The checksum of the descriptor: the second byte of its hash.
fn descriptor_checksum(descriptor: &[u8]) -> u8 {
    hash(descriptor).to_le_bytes()[1]
}

fn hash(bytes: &[u8]) -> u32 {
    XxHash32::oneshot(0, bytes)
}

fn read_u32(input: &mut &[u8]) -> Result<u32, CodecError> {
    take(input, 4).map(|mut bytes| bytes.get_u32_le())
}

fn take<'a>(input: &mut &'a [u8], len: usize) -> Result<&'a [u8], CodecError> {
    let (taken, rest) = input.split_at_checked(len).ok_or_else(|| corrupt("the frame ends early"))?;
    *input = rest;
    Ok(taken)
}

fn corrupt(reason: &str) -> CodecError {
    CodecError::Corrupt { codec: Codec::Lz4, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame with the given descriptor bytes, its checksum, and what follows.
    fn frame(descriptor: &[u8], rest: &[&[u8]]) -> Vec<u8> {
        let head = [&MAGIC.to_le_bytes(), descriptor, &[descriptor_checksum(descriptor)]].concat();
        [head, rest.concat()].concat()
    }

    fn stored(block: &[u8]) -> Vec<u8> {
        [&(block.len() as u32 | STORED).to_le_bytes()[..], block].concat()
    }

    const END: &[u8] = &[0; 4];

    #[track_caller]
    fn assert_refused(frame: &[u8], reason: &str) {
        assert_eq!(decompress(frame, 1 << 20), Err(corrupt(reason)));
    }

    #[test]
    fn long_content_takes_several_blocks() {
        for len in [0, 1, BLOCK_LEN - 1, BLOCK_LEN, BLOCK_LEN + 1, 3 * BLOCK_LEN + 7] {
            // A linear congruence: bytes that do not compress, so that stored blocks occur.
            let mut state = 1u32;
            let noise: Vec<u8> = (0..len)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                })
                .collect();
            for content in [noise, vec![7; len]] {
                let mut out = b"before".to_vec();
                compress(&content, &mut out);
                assert_eq!(decompress(&out[6..], len).as_ref(), Ok(&content));
                assert!(out.len() <= 6 + 11 + content.len() + 4 * content.len().div_ceil(BLOCK_LEN));
            }
        }
    }

    #[test]
    fn the_descriptor_is_the_well_known_one() {
        let mut out = Vec::new();
        compress(b"", &mut out);
        assert_eq!(out, [0x04, 0x22, 0x4D, 0x18, 0x60, 0x40, 0x82, 0, 0, 0, 0]);
    }

    #[test]
    fn optional_fields_are_read_and_checked() {
        let size = |n: u64| [&[0x68, 0x40][..], &n.to_le_bytes()].concat();
        assert_eq!(decompress(&frame(&size(3), &[&stored(b"abc"), END]), 3), Ok(b"abc".to_vec()));
        assert_refused(&frame(&size(4), &[&stored(b"abc"), END]), "content size differs from the frame's header");

        let sum = hash(b"abc").to_le_bytes();
        assert_eq!(decompress(&frame(&[0x70, 0x40], &[&stored(b"abc"), &sum, END]), 3), Ok(b"abc".to_vec()));
        assert_refused(&frame(&[0x70, 0x40], &[&stored(b"abc"), &[0; 4], END]), "block checksum mismatch");
        assert_eq!(decompress(&frame(&[0x64, 0x40], &[&stored(b"abc"), END, &sum]), 3), Ok(b"abc".to_vec()));
        assert_refused(&frame(&[0x64, 0x40], &[&stored(b"abc"), END, &[0; 4]]), "content checksum mismatch");
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        assert_refused(&frame(&[0x40, 0x40], &[END]), "linked blocks are not supported");
        assert_refused(&frame(&[0x61, 0x40], &[END]), "dictionaries are not supported");
        assert_refused(&frame(&[0x60, 0x30], &[END]), "unknown block size");
        assert_refused(&frame(&[0x62, 0x40], &[END]), "unknown version or reserved bits set");
        assert_refused(&frame(&[0xA0, 0x40], &[END]), "unknown version or reserved bits set");
        assert_refused(&frame(&[0x60, 0xC0], &[END]), "unknown version or reserved bits set");
        let mut wrong = frame(&[0x60, 0x40], &[END]);
        wrong[6] ^= 1;
        assert_refused(&wrong, "header checksum mismatch");
        wrong[0] ^= 1;
        assert_refused(&wrong, "wrong magic");
    }

    #[test]
    fn a_block_is_limited_by_the_frame_and_by_the_caller() {
        let long = (BLOCK_LEN as u32 + 1).to_le_bytes();
        assert_refused(
            &frame(&[0x60, 0x40], &[&long, &vec![0; BLOCK_LEN + 1]]),
            "a block is over the frame's block size",
        );
        assert_refused(&frame(&[0x60, 0x40], &[&5u32.to_le_bytes(), b"abc"]), "the frame ends early");
        let three = frame(&[0x60, 0x40], &[&stored(b"abc"), END]);
        assert_eq!(decompress(&three, 2), Err(CodecError::TooLarge { limit: 2 }));
    }
}
