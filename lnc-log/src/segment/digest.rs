//! What binds a segment's file to what a checkpoint says of it: a running digest over its batches.
//!
//! Batches have checksums and offsets, but no topic and no partition, and a file may come from an older life of its name:
//! each of its batches passes every check of its own. So a digest goes over what identifies them, one after the other: the
//! first 16 bytes and the CRC-32C of each. It costs a few instructions for each batch; whoever reads has the headers anyhow,
//! and checked their CRCs. Every replica comes to the same value.

use lnc_protocol::batch::BatchHeader;

/// Odd, so that multiplying loses nothing: the golden ratio in 64 bits.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// A digest of the batches from the beginning of a segment up to some place. It finds mistakes, not forgeries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest(pub(super) u64);

impl Digest {
    /// With one batch more.
    #[must_use]
    pub fn with(self, header: &BatchHeader) -> Self {
        self.with_fields(header.base_offset, header.batch_length, header.partition_leader_epoch, header.crc)
    }

    /// With one batch more. Each step can be undone: two segments that differ in one batch never have the same digest.
    pub(super) fn with_fields(self, base_offset: u64, batch_length: u32, epoch: i32, crc: u32) -> Self {
        let length_and_crc = u64::from(batch_length) << 32 | u64::from(crc);
        self.mixed(base_offset).mixed(u64::from(epoch as u32)).mixed(length_and_crc)
    }

    fn mixed(self, word: u64) -> Self {
        let product = (self.0 ^ word).wrapping_mul(FACTOR);
        Self(product ^ product >> 32)
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_and_the_order_count() {
        let one = Digest::default().with_fields(5, 100, 2, 77);
        for other in [(4, 100, 2, 77), (5, 101, 2, 77), (5, 100, 3, 77), (5, 100, 2, 76), (0, 0, 0, 0)] {
            assert_ne!(one, Digest::default().with_fields(other.0, other.1, other.2, other.3));
        }
        let (a, b) = ((5, 100, 2, 77), (6, 100, 2, 78));
        let both = |first: (u64, u32, i32, u32), second: (u64, u32, i32, u32)| {
            let digest = Digest::default().with_fields(first.0, first.1, first.2, first.3);
            digest.with_fields(second.0, second.1, second.2, second.3)
        };
        assert_ne!(both(a, b), both(b, a));
        assert_ne!(both(a, b), one);
    }
}
