//! What happened, as JSON lines: every record sent and what came of it, what was read, and the faults.

use serde::Serialize;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// One line. Times are microseconds since the run began.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event<'a> {
    /// The run.
    Run { seed: u64, topic: &'a str, partitions: u32, producers: u32 },
    /// A record was handed in.
    Sent { at_us: u64, producer: u32, partition: u32, number: u32 },
    /// It was acknowledged.
    Acknowledged { at_us: u64, producer: u32, partition: u32, number: u32, offset: Option<u64> },
    /// Nobody knows what came of it.
    Unknown { at_us: u64, producer: u32, partition: u32, number: u32, error: &'a str },
    /// The live consumer was handed `count` records from `offset` on.
    Consumed { at_us: u64, partition: u32, offset: u64, count: usize },
    /// A fault begins, or is over.
    Fault { at_us: u64, phase: &'a str, fault: &'a str, what: &'a str },
    /// In the end, the log of a node was read from `offset` up to `next`.
    Read { at_us: u64, node: u64, partition: u32, offset: u64, next: u64 },
    /// A promise was broken.
    Finding { at_us: u64, what: &'a str },
}

/// The file, if one is wanted.
#[derive(Default)]
pub(super) struct History {
    file: Option<BufWriter<File>>,
    /// The first failure to write; nothing is written after it.
    failure: Option<io::Error>,
}

impl History {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: Some(BufWriter::new(File::create(path)?)), failure: None })
    }

    pub(super) fn note(&mut self, event: &Event<'_>) {
        let Some(file) = &mut self.file else { return };
        let result = serde_json::to_writer(&mut *file, event).map_err(io::Error::from);
        if let Err(error) = result.and_then(|()| file.write_all(b"\n")) {
            self.failure.get_or_insert(error);
            self.file = None;
        }
    }

    /// Write what is left.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        match (self.failure.take(), &mut self.file) {
            (Some(error), _) => Err(error),
            (None, Some(file)) => file.flush(),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_json() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history");
        let mut history = History::create(&path).unwrap();
        history.note(&Event::Sent { at_us: 5, producer: 1, partition: 2, number: 3 });
        history.note(&Event::Fault { at_us: 6, phase: "begin", fault: "kill-all", what: "nodes 1, 2, 3" });
        history.finish().unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&lines[0]["event"], &lines[0]["number"]), (&"sent".into(), &3.into()));
        assert_eq!((&lines[1]["event"], &lines[1]["what"]), (&"fault".into(), &"nodes 1, 2, 3".into()));
    }
}
