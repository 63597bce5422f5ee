//! `lance consume`: records of topics on standard output.

mod readers;
mod start;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use lnc_client::{Client, ConsumedBatch, Consumer, ReadFrom, Start};
use tokio::time::timeout;

use super::Global;
use super::error::CliError;
use super::format::Format;
use super::output::OutputFormat;
use readers::{Goal, Readers};
use start::{Extent, From, Partitions, extents, known};

/// Output is written in pieces of this size, in bytes, or when no record is waiting.
const WRITE_BYTES: usize = 256 << 10;

/// So long without a first record, and the user is told that the command waits for one.
const SILENCE: Duration = Duration::from_secs(1);

/// Print records
#[derive(Debug, Args)]
#[command(after_help = "\
Without --until-end or --max, the command goes on with new records until Ctrl-C. Records of one partition come in \
their order; those of several partitions and topics come mixed.

Where to start (--from), in each partition:
  start, earliest   at the first record there is
  end, latest       after the last one
  17                at this offset; beyond the end it is an error
  -10               at the last 10 of each partition, not of the topic
  @TIME             at the first record of this time or later: milliseconds
                    since 1970, RFC 3339, a date (its midnight in UTC), or -1h,
                    -7d, -1w and so on for so long ago

The raw format ends every value with a newline: a file that was produced line by line comes out with the same lines, \
and with a newline at its end even where the file had none.

Formats:
  raw        the value and a newline
  json       one object per line, as --input json of produce reads it; bytes
             that are not UTF-8 in hexadecimal, as value_hex or key_hex
  template   text with %k key, %v value, %t topic, %p partition, %o offset,
             %T time in ms, %h all headers as name=value,…, %{name} the value
             of one header, %% percent, \\n, \\r, \\t, \\0

Examples:
  lance consume orders
  lance consume orders payments --until-end --format json > all.json
  lance consume orders --from -10 --until-end
  lance consume orders --from @-1h --partition 0,2
  lance consume orders --until-end --stale       where there is no majority
  lance consume orders --from @2026-05-01T12:00:00Z -n 10 -o json
  lance consume orders --from end --format '%p/%o %k: %v (%{source})\\n'")]
pub(super) struct ConsumeArgs {
    /// Names of the topics
    #[arg(required = true, value_name = "TOPIC")]
    topics: Vec<String>,
    /// Where to start: start, end, an offset, -N for the last N records of each partition, or @TIME
    #[arg(long, value_name = "WHERE", default_value = "start", allow_hyphen_values = true)]
    from: From,
    /// Stop at what is the end of the topics now
    #[arg(long)]
    until_end: bool,
    /// With --until-end: read what the nodes that answer know to be committed, though no leader says that it is all.
    /// For a cluster that has lost its majority
    #[arg(long, requires = "until_end")]
    stale: bool,
    /// Stop after this many records
    #[arg(short = 'n', long = "max", value_name = "N")]
    max: Option<u64>,
    /// Go on with new records, which is the default
    #[arg(long, conflicts_with_all = ["until_end", "max"])]
    follow: bool,
    /// Partitions to read: all, or numbers separated by commas
    #[arg(short, long, value_name = "N,…", default_value = "all")]
    partition: Partitions,
    /// How a record is printed: raw, json, or a template [default: raw, or json with --output json]
    #[arg(short, long)]
    format: Option<Format>,
    /// What the raw format and templates print for a key or a value that is null; nothing by default
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    null_value: String,
}

impl ConsumeArgs {
    fn format(&self, output: OutputFormat) -> Format {
        let default = if output == OutputFormat::Json { Format::Json } else { Format::Raw };
        self.format.clone().unwrap_or(default)
    }
}

pub(super) async fn run(global: &Global, mut args: ConsumeArgs) -> Result<ExitCode, CliError> {
    let client = global.connect().await?;
    let mut consumers = Vec::new();
    // Each topic once, however often it is named.
    let mut seen = BTreeSet::new();
    args.topics.retain(|topic| seen.insert(topic.clone()));
    for topic in &args.topics {
        consumers.push(open(&client, topic, &args).await?);
    }
    let ends = if args.until_end { Some(ends(&client, &consumers, &args).await?) } else { None };
    let goal = Goal { ends, left: args.max.unwrap_or(u64::MAX) };
    let mut printer = Printer {
        format: args.format(global.output),
        null: args.null_value.into_bytes(),
        topics: args.topics,
        buffer: Vec::with_capacity(WRITE_BYTES),
    };
    tokio::select! {
        result = print_all(Readers::new(consumers), goal, &mut printer) => result?,
        _ = tokio::signal::ctrl_c() => printer.flush()?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn open(client: &Client, topic: &str, args: &ConsumeArgs) -> Result<Consumer, CliError> {
    let mut builder = client.consumer(topic).start(args.from.start());
    if args.stale {
        args.from.check_stale()?;
        builder = builder.read_from(ReadFrom::Any);
    }
    if let Partitions(Some(partitions)) = &args.partition {
        builder = builder.partitions(partitions.iter().copied());
    }
    let mut consumer = builder.build().await?;
    args.from.step_back(client, &mut consumer).await?;
    Ok(consumer)
}

/// The end of each partition that has records to read before it.
async fn ends(
    client: &Client,
    consumers: &[Consumer],
    args: &ConsumeArgs,
) -> Result<BTreeMap<(usize, u32), u64>, CliError> {
    let (from, mut ends) = (args.from, BTreeMap::new());
    for (place, consumer) in consumers.iter().enumerate() {
        let extents = if args.stale { known(client, consumer).await? } else { extents(client, consumer).await? };
        from.check(consumer.topic(), &extents)?;
        let unread = extents.into_iter().filter(|(_, Extent { position, end })| position < end);
        ends.extend(unread.map(|(number, extent)| ((place, number), extent.end)));
    }
    if ends.is_empty() && matches!(from, From::At(Start::Timestamp(_))) {
        eprintln!("lance: there is no record of this time or later");
    }
    Ok(ends)
}

async fn print_all(mut readers: Readers, mut goal: Goal, printer: &mut Printer) -> Result<(), CliError> {
    // Whoever looks at a terminal is told, once, that nothing is not an error.
    let mut to_be_told = goal.ends.is_none() && io::stderr().is_terminal();
    while !goal.is_reached() {
        let waiting = tokio::select! {
            biased;
            batch = readers.next() => Some(batch),
            () = std::future::ready(()) => None,
        };
        let batch = match waiting {
            Some(batch) => batch,
            None => {
                printer.flush()?;
                wait_for(&mut readers, to_be_told).await
            }
        };
        to_be_told = false;
        match batch {
            Some((topic, Ok(mut batch))) => {
                goal.admit(topic, &mut batch);
                printer.print(topic, &batch)?;
            }
            // The consumer goes on by itself, and so does whoever waits for new records.
            Some((_, Err(error))) if error.is_retriable() && goal.ends.is_none() => eprintln!("lance: {error}"),
            Some((_, Err(error))) => {
                printer.flush()?;
                return Err(error.into());
            }
            None => break,
        }
    }
    printer.flush()
}

/// The next batch, whenever it comes. Who is to be told hears once that there is none yet.
async fn wait_for(readers: &mut Readers, to_be_told: bool) -> Option<(usize, lnc_client::Result<ConsumedBatch>)> {
    if to_be_told {
        if let Ok(batch) = timeout(SILENCE, readers.next()).await {
            return batch;
        }
        eprintln!("lance: there are no records to print yet; waiting for new ones, Ctrl-C ends");
    }
    readers.next().await
}

struct Printer {
    format: Format,
    /// What stands for a key or a value that is null.
    null: Vec<u8>,
    topics: Vec<String>,
    buffer: Vec<u8>,
}

impl Printer {
    fn print(&mut self, topic: usize, batch: &ConsumedBatch) -> Result<(), CliError> {
        for record in &batch.records {
            self.format.write(&self.topics[topic], record, &self.null, &mut self.buffer);
            if self.buffer.len() >= WRITE_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), CliError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        let result = out.write_all(&self.buffer).and_then(|()| out.flush());
        self.buffer.clear();
        result.map_err(|error| CliError::stdout(&error))
    }
}
