//! What a node keeps on its disk and in memory, gives to peers and lets go.

pub(crate) mod checkpoint;
pub(crate) mod retention;
pub(crate) mod retries;
pub(crate) mod scrub;
pub(crate) mod snapshot;
pub(crate) mod space;
pub(crate) mod storage;
pub mod tail_cache;
pub(crate) mod transfer;
