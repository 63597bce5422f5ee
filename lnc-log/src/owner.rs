//! Whose a file is: files name the member that wrote them, so that another's are not taken for this node's own.

use std::fmt;

/// A member of a cluster in one life of its data directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileOwner {
    /// The cluster.
    pub cluster: u128,
    /// The configured number of the node.
    pub node: u64,
    /// Drawn when the data directory was made.
    pub incarnation: u64,
}

impl FileOwner {
    /// Length of its encoding in bytes.
    pub(crate) const LEN: usize = 32;

    pub(crate) fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..16].copy_from_slice(&self.cluster.to_le_bytes());
        out[16..24].copy_from_slice(&self.node.to_le_bytes());
        out[24..].copy_from_slice(&self.incarnation.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let part = |at: usize| {
            let mut raw = [0; 8];
            raw.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(raw)
        };
        let cluster = u128::from(part(0)) | u128::from(part(8)) << 64;
        Self { cluster, node: part(16), incarnation: part(24) }
    }
}

impl fmt::Display for FileOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, node, incarnation } = self;
        write!(f, "node {node} (incarnation {incarnation:#018x}) of cluster {cluster:032x}")
    }
}
