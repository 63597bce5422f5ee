//! `lance produce`: the lines of a file or of standard input, or JSON documents, become records.
//!
//! [`input`] reads large blocks of whole records in a thread, [`shape`] makes records of what lies between the delimiters,
//! [`sending`] hands them to the producer and tells what became of them.

mod input;
mod sending;
mod shape;

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use lnc_client::{Acks, Codec};

use super::error::CliError;
use super::format::unescape;
use super::output::{self, OutputFormat};
use super::{Global, duration, positive_duration, size};
use input::{Delimiter, read_in_thread};
use sending::Sending;
use shape::{Kind, Shape};

/// Write lines, or JSON documents, as records
#[derive(Debug, Args)]
#[command(after_help = "\
One line is one record. The newline is not part of it; a last line without a newline counts too. All other bytes are \
kept as they are. With --delimiter another text ends a record, with --whole only the end of the input does.

Records without a key go to one partition until a batch is full, then to the next. Standard error gets a summary. At \
the first record that fails, no more are read, and the exit code is not 0.

With --input json each line is a document, as lance consume --format json prints it:
  key, value     text, or null: no key, a tombstone; the value must be there
  key_hex, value_hex
                 the same in hexadecimal, for bytes that are not UTF-8
  headers        a list of {\"name\":\"n\",\"value\":\"v\"}, or value_hex for the value
  timestamp_ms   milliseconds since 1970; by default it is now
  partition      by default the key decides
  topic, offset  where it was read; they say nothing about where it goes

Examples:
  lance produce orders --file orders.txt
  tail -F access.log | lance produce access --compression zstd
  printf 'user-1:login\\nuser-2:logout\\n' | lance produce events -k :
  lance produce events --header source=web --file events.txt
  printf 'user-1:\\n' | lance produce events -k : --null-value ''
  lance produce letters --whole --file letter.txt
  find . -print0 | lance produce files --delimiter '\\0'
  lance consume old --until-end --format json | lance produce new --input json")]
pub(super) struct ProduceArgs {
    /// Name of the topic; it must exist
    topic: String,
    /// Read this file instead of standard input, which is -
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What the input holds
    #[arg(short, long, value_enum, default_value_t)]
    input: InputArg,
    /// What ends a record, instead of a newline. \n, \r, \t, \0 and \\ stand for what they do in C
    #[arg(short = 'D', long, value_name = "TEXT", value_parser = separator)]
    delimiter: Option<String>,
    /// The whole input is one record
    #[arg(long, conflicts_with = "delimiter")]
    whole: bool,
    /// Split each line at the first SEP into key and value; a line without it has no key. \t stands for a tab
    #[arg(short, long, value_name = "SEP", value_parser = separator)]
    key_separator: Option<String>,
    /// A value that is this text is stored as null, which makes a tombstone of a record with a key
    #[arg(long, value_name = "TEXT")]
    null_value: Option<String>,
    /// A header for every record; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, Option<Bytes>)>,
    /// When a record counts as stored: on disk at a majority of the replicas, on disk at the leader, or when sent
    #[arg(long, value_enum, default_value_t)]
    acks: AcksArg,
    /// How batches are compressed
    #[arg(long, value_enum, default_value_t)]
    compression: CompressionArg,
    /// Write all records to this partition, whatever a document says
    #[arg(short, long, value_name = "N")]
    partition: Option<u32>,
    /// How long a batch waits for more records
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

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum InputArg {
    /// Values, or keys and values, as they are
    #[default]
    Text,
    /// A document for each record
    Json,
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

fn header(text: &str) -> Result<(String, Option<Bytes>), String> {
    let (name, value) = text.split_once('=').ok_or("write name=value")?;
    if name.is_empty() {
        Err("the name is empty".to_owned())
    } else {
        Ok((name.to_owned(), Some(value.to_owned().into())))
    }
}

impl ProduceArgs {
    fn delimiter(&self) -> Delimiter {
        match &self.delimiter {
            _ if self.whole => Delimiter::End,
            Some(text) => Delimiter::Text(text.clone().into()),
            None => Delimiter::Text(b"\n".to_vec()),
        }
    }

    fn shape(&self) -> Result<Shape, CliError> {
        let text = |text: &Option<String>| text.clone().map(String::into_bytes);
        let kind = match self.input {
            InputArg::Text => Kind::Text { separator: text(&self.key_separator), null: text(&self.null_value) },
            InputArg::Json if self.key_separator.is_some() || self.null_value.is_some() => {
                let why = "a JSON document names its key and its null: leave out --key-separator and --null-value";
                return Err(CliError::usage(why));
            }
            InputArg::Json => Kind::Json,
        };
        Ok(Shape { kind, headers: self.headers.clone(), partition: self.partition })
    }
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
    let (shape, delimiter) = (args.shape()?, args.delimiter());
    let (input, length) = open(args.file.as_deref())?;
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
    if is_typed(args.file.as_deref()) {
        let what = if args.whole { "one record" } else { "records" };
        eprintln!("lance: reading {what} from the terminal; Ctrl-D at the start of a line ends");
    }
    let blocks = read_in_thread(input, delimiter.clone())?;
    let (reads_stdin, is_typed) = (args.file.as_deref().is_none_or(is_stdin), is_typed(args.file.as_deref()));
    let tells_of_silence = reads_stdin && !is_typed && !args.quiet;
    let mut sending = Sending::new(&producer, &delimiter, shape, progress(args.quiet, length), tells_of_silence);
    let end = sending.run(blocks).await;
    sending.progress.finish_and_clear();
    match global.output {
        OutputFormat::Json => output::print_json(&sending.summary_json())?,
        OutputFormat::Table if !args.quiet => eprintln!("{}", sending.summary()),
        OutputFormat::Table => {}
    }
    end.map(|()| ExitCode::SUCCESS)
}

/// What to read, and how much that is, where it is known.
fn open(file: Option<&Path>) -> Result<(Box<dyn Read + Send>, Option<u64>), CliError> {
    let Some(path) = file.filter(|path| !is_stdin(path)) else { return Ok((Box::new(io::stdin()), None)) };
    let cannot = |error: io::Error| CliError::failed(format!("cannot open {}: {error}", path.display()));
    let file = File::open(path).map_err(cannot)?;
    if file.metadata().is_ok_and(|data| data.is_dir()) {
        return Err(CliError::failed(format!("cannot read {}: it is a directory", path.display())));
    }
    let length = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|data| data.len());
    Ok((Box::new(file), length))
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// Whether somebody has to type the input.
fn is_typed(file: Option<&Path>) -> bool {
    file.is_none_or(is_stdin) && io::stdin().is_terminal()
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
