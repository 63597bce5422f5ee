//! What `lance produce` reads: a stream of bytes, cut into blocks of whole records by a thread of its own.

use std::io::{self, Read};
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use crate::cli::error::CliError;

/// Bytes read at once. Blocks of this size keep the cost per record low.
const BLOCK_BYTES: usize = 1 << 20;

/// Blocks that wait between the reading thread and the producer.
const BLOCKS_AHEAD: usize = 4;

/// Longest record that is read, in bytes; brokers accept far less.
const MAX_RECORD_BYTES: usize = 64 << 20;

/// What ends a record. It is not part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Delimiter {
    Text(Vec<u8>),
    /// Only the end of the input does.
    End,
}

impl Delimiter {
    /// The record that begins at `start`, and where the next one begins.
    pub(super) fn split(&self, block: &[u8], start: usize) -> (Range<usize>, usize) {
        let found = match self {
            Self::Text(text) => find(text, &block[start..]).map(|at| (start + at, text.len())),
            Self::End => None,
        };
        let (end, length) = found.unwrap_or((block.len(), 0));
        (start..end, end + length)
    }
}

/// Where `text`, which is not empty, occurs first.
pub(super) fn find(text: &[u8], bytes: &[u8]) -> Option<usize> {
    match text {
        [single] => bytes.iter().position(|byte| byte == single),
        _ => bytes.windows(text.len()).position(|window| window == text),
    }
}

/// Reads blocks of whole records in a thread of its own, which ends with the input or with the receiver.
pub(super) fn read_in_thread(
    mut input: Box<dyn Read + Send>,
    delimiter: Delimiter,
) -> Result<mpsc::Receiver<io::Result<Bytes>>, CliError> {
    let (sender, receiver) = mpsc::channel(BLOCKS_AHEAD);
    let read = move || {
        let mut blocks = Blocks::new(delimiter);
        while let Some(block) = blocks.next(&mut input).transpose() {
            let failed = block.is_err();
            if sender.blocking_send(block).is_err() || failed {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("input".to_owned()).spawn(read);
    thread.map_err(|error| CliError::failed(format!("cannot start a thread: {error}")))?;
    Ok(receiver)
}

/// Cuts a stream of bytes into blocks that end with a delimiter or with the stream.
struct Blocks {
    delimiter: Delimiter,
    /// The beginning of a record whose end was not read yet.
    buffer: BytesMut,
    /// Up to here the buffer holds no delimiter.
    searched: usize,
    ended: bool,
}

impl Blocks {
    fn new(delimiter: Delimiter) -> Self {
        Self { delimiter, buffer: BytesMut::new(), searched: 0, ended: false }
    }

    /// The next block, not empty, as soon as there is a whole record; `None` at the end.
    fn next(&mut self, input: &mut dyn Read) -> io::Result<Option<Bytes>> {
        while !self.ended {
            let old = self.buffer.len();
            if old >= MAX_RECORD_BYTES {
                return Err(io::Error::other(format!("a record is longer than {} MiB", MAX_RECORD_BYTES >> 20)));
            }
            self.buffer.resize(old + BLOCK_BYTES, 0);
            let read = match input.read(&mut self.buffer[old..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
                result => result.map(Some),
            };
            self.buffer.truncate(old + read.as_ref().ok().and_then(|length| *length).unwrap_or(0));
            match read? {
                None => continue,
                Some(0) => self.ended = true,
                Some(_) => {
                    let whole = self.whole();
                    if whole > 0 {
                        return Ok(Some(self.buffer.split_to(whole).freeze()));
                    }
                }
            }
        }
        let rest = self.buffer.split().freeze();
        Ok(if rest.is_empty() { None } else { Some(rest) })
    }

    /// How many bytes at the front are whole records. Searched from the front, as the records are split later: a delimiter
    /// such as `aa` may overlap itself.
    fn whole(&mut self) -> usize {
        let Delimiter::Text(text) = &self.delimiter else { return 0 };
        if let [single] = text[..] {
            // The usual case, which is cheaper from the end.
            let last = self.buffer[self.searched..].iter().rposition(|byte| *byte == single);
            let whole = last.map_or(0, |at| self.searched + at + 1);
            self.searched = self.buffer.len() - whole;
            return whole;
        }
        let (mut whole, mut searched) = (0, self.searched);
        while let Some(at) = find(text, &self.buffer[searched..]) {
            searched += at + text.len();
            whole = searched;
        }
        // The last bytes may be the beginning of a delimiter.
        self.searched = searched.max((self.buffer.len() + 1).saturating_sub(text.len())) - whole;
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a few bytes at a time.
    struct Trickle<'a>(&'a [u8], usize);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = self.1.min(self.0.len()).min(buffer.len());
            buffer[..length].copy_from_slice(&self.0[..length]);
            self.0 = &self.0[length..];
            Ok(length)
        }
    }

    fn text(text: &[u8]) -> Delimiter {
        Delimiter::Text(text.to_vec())
    }

    fn blocks(bytes: &[u8], delimiter: &Delimiter, step: usize) -> Vec<Vec<u8>> {
        let (mut blocks, mut input, mut all) = (Blocks::new(delimiter.clone()), Trickle(bytes, step), Vec::new());
        while let Some(block) = blocks.next(&mut input).unwrap() {
            all.push(block.to_vec());
        }
        all
    }

    /// The records of these blocks.
    fn records(blocks: &[Vec<u8>], delimiter: &Delimiter) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for block in blocks {
            let mut start = 0;
            while start < block.len() {
                let (record, next) = delimiter.split(block, start);
                all.push(block[record].to_vec());
                start = next;
            }
        }
        all
    }

    #[test]
    fn blocks_hold_whole_lines_and_all_bytes() {
        let bytes = b"one\n\ntw\0o\r\n\xff\nlast";
        for step in 1..=bytes.len() {
            let blocks = blocks(bytes, &text(b"\n"), step);
            assert_eq!(blocks.concat(), bytes, "step {step}");
            let (last, others) = blocks.split_last().unwrap();
            assert_eq!(last, b"last");
            assert!(others.iter().all(|block| block.ends_with(b"\n")), "step {step}");
        }
        assert!(blocks(b"", &text(b"\n"), 1).is_empty());
        assert_eq!(blocks(b"\n", &text(b"\n"), 1), [b"\n"]);
    }

    #[test]
    fn records_are_the_same_however_the_input_comes() {
        let cases = [
            ("a\nb\0c\0\0d", text(b"\0"), vec!["a\nb", "c", "", "d"]),
            ("a\n\nb\n\n\nc\n", text(b"\n\n"), vec!["a", "b", "\nc\n"]),
            ("xaaayaaaa", text(b"aa"), vec!["x", "ay", ""]),
            ("one\ntwo\n", Delimiter::End, vec!["one\ntwo\n"]),
            ("", Delimiter::End, vec![]),
        ];
        for (input, delimiter, expected) in cases {
            let bytes = input.as_bytes();
            let expected: Vec<&[u8]> = expected.into_iter().map(str::as_bytes).collect();
            for step in 1..=bytes.len().max(1) {
                let found = records(&blocks(bytes, &delimiter, step), &delimiter);
                assert_eq!(found, expected, "{delimiter:?}, step {step}");
            }
        }
    }

    #[test]
    fn a_line_is_available_as_soon_as_it_ends() {
        let (mut blocks, mut input) = (Blocks::new(text(b"\n")), Trickle(b"now\nlater\n", 5));
        assert_eq!(blocks.next(&mut input).unwrap().unwrap(), "now\n");
    }
}
