//! `lance produce`: the lines of a file or of standard input become records.
//!
//! A thread reads large blocks of whole lines; the command hands each line to the producer without copying it, and
//! looks at the deliveries in the order of the lines, so that it can say which line failed first.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use lnc_client::{Acks, Codec, DeliveryFuture, Producer, Record};
use tokio::sync::mpsc;

use super::error::CliError;
use super::format::unescape;
use super::output::plural;
use super::{Global, duration, positive_duration, size};

/// Bytes read at once. Blocks of this size keep the cost per line low.
const BLOCK_BYTES: usize = 1 << 20;

/// Blocks that wait between the reading thread and the producer.
const BLOCKS_AHEAD: usize = 4;

/// Longest line that is read, in bytes; brokers accept far less.
const MAX_LINE_BYTES: usize = 64 << 20;

/// Write lines as records
#[derive(Debug, Args)]
#[command(after_help = "\
One line is one record. The newline is not part of it; a last line without a newline counts too. All other bytes are
kept as they are. Lines without a key go to one partition until a batch is full, then to the next. Standard error gets
a summary. At the first line that fails, no more are read, and the exit code is not 0.

Examples:
  lance produce orders --file orders.txt
  tail -F access.log | lance produce access --compression zstd
  printf 'user-1:login\\nuser-2:logout\\n' | lance produce events -k :")]
pub(super) struct ProduceArgs {
    /// Name of the topic; it must exist
    topic: String,
    /// Read this file instead of standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Split each line at the first SEP into key and value; a line without it has no key. \t stands for a tab
    #[arg(short, long, value_name = "SEP", value_parser = separator)]
    key_separator: Option<String>,
    /// When a record counts as stored: on disk at a majority of the replicas, on disk at the leader, or when sent
    #[arg(long, value_enum, default_value_t)]
    acks: AcksArg,
    /// How batches are compressed
    #[arg(long, value_enum, default_value_t)]
    compression: CompressionArg,
    /// Write all records to this partition
    #[arg(short, long, value_name = "N")]
    partition: Option<u32>,
    /// How long a batch waits for more lines
    #[arg(long, value_name = "TIME", default_value = "5ms", value_parser = duration)]
    linger: Duration,
    /// Size at which a batch is sent without waiting
    #[arg(long, value_name = "SIZE", default_value = "256KiB", value_parser = batch_size)]
    batch_bytes: usize,
    /// How long to try to store a record before it counts as failed
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = positive_duration)]
    delivery_timeout: Duration,
    /// Print no summary and no progress
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum AcksArg {
    #[default]
    Quorum,
    Leader,
    None,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum CompressionArg {
    #[default]
    None,
    Lz4,
    Zstd,
}

impl From<AcksArg> for Acks {
    fn from(acks: AcksArg) -> Self {
        match acks {
            AcksArg::Quorum => Self::Quorum,
            AcksArg::Leader => Self::Leader,
            AcksArg::None => Self::None,
        }
    }
}

impl From<CompressionArg> for Codec {
    fn from(compression: CompressionArg) -> Self {
        match compression {
            CompressionArg::None => Self::None,
            CompressionArg::Lz4 => Self::Lz4,
            CompressionArg::Zstd => Self::Zstd,
        }
    }
}

fn separator(text: &str) -> Result<String, String> {
    let text = unescape(text)?;
    if text.is_empty() { Err("must not be empty".to_owned()) } else { Ok(text) }
}

fn batch_size(text: &str) -> Result<usize, String> {
    /// The producer's memory holds several batches of this size.
    const MOST: u64 = 8 << 20;
    match size(text)? {
        bytes @ 1..=MOST => usize::try_from(bytes).map_err(|error| error.to_string()),
        _ => Err("must be more than 0 and at most 8MiB".to_owned()),
    }
}

pub(super) async fn run(global: &Global, args: ProduceArgs) -> Result<ExitCode, CliError> {
    let (input, length): (Box<dyn Read + Send>, Option<u64>) = match &args.file {
        Some(path) => {
            let cannot = |error: io::Error| CliError::failed(format!("cannot open {}: {error}", path.display()));
            let file = File::open(path).map_err(cannot)?;
            let length = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|data| data.len());
            (Box::new(file), length)
        }
        None => (Box::new(io::stdin()), None),
    };
    let client = global.connect().await?;
    let producer = client
        .producer(&args.topic)
        .acks(args.acks.into())
        .compression(args.compression.into())
        .linger(args.linger)
        .max_batch_bytes(args.batch_bytes)
        .delivery_timeout(args.delivery_timeout)
        .build()
        .await?;
    let blocks = read_in_thread(input)?;
    let mut lines = Lines::new(&producer, &args, progress(args.quiet, length));
    let end = lines.run(blocks).await;
    lines.progress.finish_and_clear();
    if !args.quiet {
        eprintln!("{}", lines.summary());
    }
    end.map(|()| ExitCode::SUCCESS)
}

/// A bar on a terminal that nobody types at, else nothing.
fn progress(quiet: bool, length: Option<u64>) -> ProgressBar {
    if quiet || !io::stderr().is_terminal() || (length.is_none() && io::stdin().is_terminal()) {
        return ProgressBar::hidden();
    }
    let template = match length {
        Some(_) => "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        None => "{spinner} {bytes} {bytes_per_sec}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    length.map_or_else(ProgressBar::new_spinner, ProgressBar::new).with_style(style)
}

/// Reads blocks of whole lines in a thread of its own, which ends with the input or with the receiver.
fn read_in_thread(mut input: Box<dyn Read + Send>) -> Result<mpsc::Receiver<io::Result<Bytes>>, CliError> {
    let (sender, receiver) = mpsc::channel(BLOCKS_AHEAD);
    let read = move || {
        let mut blocks = Blocks::default();
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

/// Cuts a stream of bytes into blocks that end with a newline or with the stream.
#[derive(Default)]
struct Blocks {
    /// The beginning of a line whose end was not read yet.
    buffer: BytesMut,
    ended: bool,
}

impl Blocks {
    /// The next block, not empty, as soon as there is a whole line; `None` at the end.
    fn next(&mut self, input: &mut dyn Read) -> io::Result<Option<Bytes>> {
        while !self.ended {
            let old = self.buffer.len();
            if old >= MAX_LINE_BYTES {
                return Err(io::Error::other(format!("a line is longer than {MAX_LINE_BYTES} bytes")));
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
                    if let Some(newline) = self.buffer[old..].iter().rposition(|byte| *byte == b'\n') {
                        return Ok(Some(self.buffer.split_to(old + newline + 1).freeze()));
                    }
                }
            }
        }
        let rest = self.buffer.split().freeze();
        Ok(if rest.is_empty() { None } else { Some(rest) })
    }
}

/// The lines on their way.
struct Lines<'a> {
    producer: &'a Producer,
    separator: Option<&'a [u8]>,
    partition: Option<u32>,
    progress: ProgressBar,
    started: Instant,
    /// Deliveries that are not known yet, in the order of the lines.
    pending: VecDeque<DeliveryFuture>,
    handed_in: u64,
    /// Lines whose delivery is known; the next one to settle is the line after.
    settled: u64,
    stored: u64,
    failed: u64,
    bytes: u64,
}

impl<'a> Lines<'a> {
    fn new(producer: &'a Producer, args: &'a ProduceArgs, progress: ProgressBar) -> Self {
        Self {
            producer,
            separator: args.key_separator.as_deref().map(str::as_bytes),
            partition: args.partition,
            progress,
            started: Instant::now(),
            pending: VecDeque::new(),
            handed_in: 0,
            settled: 0,
            stored: 0,
            failed: 0,
            bytes: 0,
        }
    }

    /// Everything, up to the last delivery. Ctrl-C ends the input; a second one ends the wait for deliveries.
    async fn run(&mut self, blocks: mpsc::Receiver<io::Result<Bytes>>) -> Result<(), CliError> {
        let end = self.hand_in(blocks).await;
        let flushed = tokio::select! {
            _ = self.producer.flush() => Ok(()),
            _ = tokio::signal::ctrl_c() => Err(CliError::failed("interrupted before all lines were acknowledged")),
        };
        end.and(self.settle()).and(flushed)
    }

    async fn hand_in(&mut self, mut blocks: mpsc::Receiver<io::Result<Bytes>>) -> Result<(), CliError> {
        loop {
            let block = tokio::select! {
                block = blocks.recv() => block,
                outcome = oldest(&mut self.pending) => {
                    self.count(outcome)?;
                    continue;
                }
                _ = tokio::signal::ctrl_c() => None,
            };
            let Some(block) = block else { return Ok(()) };
            let block = block.map_err(|error| CliError::failed(format!("cannot read the input: {error}")))?;
            self.hand_in_block(&block).await?;
            self.settle()?;
            self.progress.inc(block.len() as u64);
        }
    }

    async fn hand_in_block(&mut self, block: &Bytes) -> Result<(), CliError> {
        let timestamp_ms =
            SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|since| i64::try_from(since.as_millis()).ok());
        let mut start = 0;
        while start < block.len() {
            let length = block[start..].iter().position(|byte| *byte == b'\n').unwrap_or(block.len() - start);
            let (key, value) = split_key(block, start..start + length, self.separator);
            start += length + 1;
            let record =
                Record { key, value: Some(value), headers: Vec::new(), timestamp_ms, partition: self.partition };
            self.handed_in += 1;
            self.bytes += length as u64;
            match self.producer.enqueue(record).await {
                Ok(delivery) => self.pending.push_back(delivery),
                Err(error) => {
                    self.failed += 1;
                    let line = self.handed_in;
                    return Err(CliError::from(error).context(format!("line {line}")));
                }
            }
        }
        Ok(())
    }

    /// Counts the deliveries that are known by now.
    fn settle(&mut self) -> Result<(), CliError> {
        let mut result = Ok(());
        let mut context = Context::from_waker(Waker::noop());
        while let Some(delivery) = self.pending.front_mut() {
            let Poll::Ready(outcome) = Pin::new(delivery).poll(&mut context) else { break };
            self.pending.pop_front();
            result = result.and(self.count(outcome.map(drop)));
        }
        result
    }

    fn count(&mut self, outcome: lnc_client::Result<()>) -> Result<(), CliError> {
        self.settled += 1;
        match outcome {
            Ok(()) => {
                self.stored += 1;
                Ok(())
            }
            Err(error) => {
                self.failed += 1;
                let line = self.settled;
                Err(CliError::from(error).context(format!("line {line}")))
            }
        }
    }

    fn summary(&self) -> String {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-6);
        let (rate, mbps) = (self.stored as f64 / seconds, self.bytes as f64 / seconds / 1e6);
        let mut text = format!(
            "{} {} stored in {seconds:.2} s ({rate:.0} lines/s, {mbps:.1} MB/s)",
            self.stored,
            plural(self.stored, "line")
        );
        if self.failed > 0 {
            text.push_str(&format!(", {} failed", self.failed));
        }
        if !self.pending.is_empty() {
            text.push_str(&format!(", {} with unknown outcome", self.pending.len()));
        }
        text
    }
}

/// Waits for the oldest delivery; for ever if there is none.
async fn oldest(pending: &mut VecDeque<DeliveryFuture>) -> lnc_client::Result<()> {
    match pending.front_mut() {
        Some(delivery) => {
            let outcome = delivery.await;
            pending.pop_front();
            outcome.map(drop)
        }
        None => std::future::pending().await,
    }
}

/// Key and value of one line, as parts of its block.
fn split_key(block: &Bytes, line: std::ops::Range<usize>, separator: Option<&[u8]>) -> (Option<Bytes>, Bytes) {
    let found = separator.and_then(|separator| {
        let at = block[line.clone()].windows(separator.len()).position(|window| window == separator)?;
        Some((at, separator.len()))
    });
    match found {
        Some((at, length)) => {
            let key = block.slice(line.start..line.start + at);
            (Some(key), block.slice(line.start + at + length..line.end))
        }
        None => (None, block.slice(line)),
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

    fn blocks(text: &[u8], step: usize) -> Vec<Vec<u8>> {
        let (mut blocks, mut input, mut all) = (Blocks::default(), Trickle(text, step), Vec::new());
        while let Some(block) = blocks.next(&mut input).unwrap() {
            all.push(block.to_vec());
        }
        all
    }

    #[test]
    fn blocks_hold_whole_lines_and_all_bytes() {
        let text = b"one\n\ntw\0o\r\n\xff\nlast";
        for step in 1..=text.len() {
            let blocks = blocks(text, step);
            assert_eq!(blocks.concat(), text, "step {step}");
            let (last, others) = blocks.split_last().unwrap();
            assert_eq!(last, b"last");
            assert!(others.iter().all(|block| block.ends_with(b"\n")), "step {step}");
        }
        assert!(blocks(b"", 1).is_empty());
        assert_eq!(blocks(b"\n", 1), [b"\n"]);
    }

    #[test]
    fn a_line_is_available_as_soon_as_it_ends() {
        let (mut blocks, mut input) = (Blocks::default(), Trickle(b"now\nlater\n", 5));
        assert_eq!(blocks.next(&mut input).unwrap().unwrap(), "now\n");
    }

    #[test]
    fn keys_are_split_at_the_first_separator() {
        let block = Bytes::from_static(b"x:a::b:c\n");
        let split = |separator: Option<&[u8]>| {
            let (key, value) = split_key(&block, 2..8, separator);
            (key.map(|key| key.to_vec()), value.to_vec())
        };
        assert_eq!(split(None), (None, b"a::b:c".to_vec()));
        assert_eq!(split(Some(b":")), (Some(b"a".to_vec()), b":b:c".to_vec()));
        assert_eq!(split(Some(b"::")), (Some(b"a".to_vec()), b"b:c".to_vec()));
        assert_eq!(split(Some(b"c\n")), (None, b"a::b:c".to_vec()));
        assert_eq!(split(Some(b"a::b:c")), (Some(b"".to_vec()), b"".to_vec()));
    }
}
