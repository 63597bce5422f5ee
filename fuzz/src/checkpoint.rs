//! Checkpoint files of any content, and the states within them.

use crate::input::{put, store};
use lnc_log::checkpoint::{Loaded, load_latest};
use lnc_log::disk::{BLOCK, MemoryDisk};

/// Number of the checkpoint.
const NUMBER: u64 = 5;
/// Length of the header in bytes.
const HEADER: usize = 64;

/// The bytes as a file; then with lengths and checksums put right.
pub fn run(data: &[u8]) {
    load(data);
    let mut file = data.to_vec();
    file.resize(file.len().max(HEADER), 0);
    let (header, body) = file.split_at_mut(HEADER);
    put(header, 0, b"LNCC\x03\x00");
    put(header, 8, &NUMBER.to_le_bytes());
    put(header, 24, &(body.len() as u64).to_le_bytes());
    put(header, 36, &crc32fast::hash(body).to_le_bytes());
    let crc = crc32fast::hash(&header[..60]);
    put(header, 60, &crc.to_le_bytes());
    // Both copies, or one beside whatever the input had there.
    file.resize(file.len().next_multiple_of(BLOCK), 0);
    load(&[&file[..], &file[..]].concat());
    load(&[&file[..], &vec![1; file.len()][..]].concat());
}

fn load(file: &[u8]) {
    let mut disk = MemoryDisk::new();
    store(&mut disk, "checkpoint", &format!("{NUMBER:020}.checkpoint"), file);
    let loaded = load_latest(&mut disk);
    assert!(!matches!(loaded, Ok(None)), "a newest checkpoint is never passed over");
    if let Ok(Some(Loaded { checkpoint, .. })) = loaded {
        assert_eq!(checkpoint.number, NUMBER);
        let states: usize = checkpoint.groups.iter().map(|group| group.state.len()).sum();
        assert!(states <= file.len());
    }
}
