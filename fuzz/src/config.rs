//! Configuration files of any content.

use lance::config::{Config, Sources};
use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, Write};
use tempfile::TempPath;

thread_local! {
    /// The file is made once, and written anew for each input.
    static FILE: RefCell<(File, TempPath)> =
        RefCell::new(tempfile::NamedTempFile::new().expect("a temporary file").into_parts());
}

/// The file is either understood, or every problem has a text.
pub fn run(data: &[u8]) {
    FILE.with_borrow_mut(|(file, path)| {
        file.set_len(0).expect("a temporary file can be cut");
        file.rewind().expect("and written");
        file.write_all(data).expect("from its start");
        match Config::load(&Sources::default().file(&*path)) {
            Ok(config) => assert!(config.cluster.nodes.contains(config.this_node())),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    });
}
