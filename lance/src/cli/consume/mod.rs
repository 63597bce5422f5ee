//! `lance consume`: records of a topic on standard output.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;
use lnc_client::{Client, ConsumedBatch, Consumer, OffsetSpec, Start};

use super::Global;
use super::error::CliError;
use super::format::Format;
use super::time::parse_time;

/// Output is written in pieces of this size, in bytes, or when no record is waiting.
const WRITE_BYTES: usize = 256 << 10;

/// Print records
#[derive(Debug, Args)]
#[command(after_help = "\
Without --until-end or --max, the command goes on with new records until Ctrl-C. Records of one partition come in
their order; those of several partitions come mixed.

The raw format ends every value with a newline: a file that was produced line by line comes out with the same lines,
and with a newline at its end even where the file had none.

Formats:
  raw        the value and a newline
  json       one object per line; bytes that are not UTF-8 appear in hexadecimal, as value_hex or key_hex
  template   text with %k key, %v value, %t topic, %p partition, %o offset, %T time in ms, %% percent, \\n, \\t

Examples:
  lance consume orders
  lance consume orders --until-end > orders.txt
  lance consume orders --from @2026-05-01T12:00:00Z -n 10 --format json
  lance consume orders --from end --format '%p/%o %k: %v\\n'")]
pub(super) struct ConsumeArgs {
    /// Name of the topic
    topic: String,
    /// Where to start: start, end, an offset, or @TIME in RFC 3339 or milliseconds since 1970
    #[arg(long, value_name = "WHERE", default_value = "start")]
    from: From,
    /// Stop at what is the end of the topic now
    #[arg(long)]
    until_end: bool,
    /// Stop after this many records
    #[arg(short = 'n', long = "max", value_name = "N")]
    max: Option<u64>,
    /// Go on with new records, which is the default
    #[arg(long, conflicts_with_all = ["until_end", "max"])]
    follow: bool,
    /// Read only this partition
    #[arg(short, long, value_name = "N")]
    partition: Option<u32>,
    /// How a record is printed: raw, json, or a template
    #[arg(short, long, default_value = "raw")]
    format: Format,
}

/// Where to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct From(Start);

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let start = match (text, text.strip_prefix('@')) {
            ("start", _) => Some(Start::Earliest),
            ("end", _) => Some(Start::Latest),
            (_, Some(time)) => parse_time(time).map(Start::Timestamp),
            (offset, None) => offset.parse().ok().map(Start::Offset),
        };
        start
            .map(Self)
            .ok_or_else(|| "must be start, end, an offset, or @TIME such as @2026-05-01T12:00:00Z".to_owned())
    }
}

pub(super) async fn run(global: &Global, args: ConsumeArgs) -> Result<ExitCode, CliError> {
    let client = global.connect().await?;
    let mut builder = client.consumer(&args.topic).start(args.from.0);
    if let Some(partition) = args.partition {
        builder = builder.partitions([partition]);
    }
    let consumer = builder.build().await?;
    let goal = Goal {
        ends: if args.until_end { Some(ends(&client, &consumer, args.partition).await?) } else { None },
        left: args.max.unwrap_or(u64::MAX),
    };
    let mut printer = Printer { format: args.format, topic: args.topic, buffer: Vec::with_capacity(WRITE_BYTES) };
    tokio::select! {
        result = print_all(consumer, goal, &mut printer) => result?,
        _ = tokio::signal::ctrl_c() => printer.flush()?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The end of each partition that has records to read before it.
async fn ends(client: &Client, consumer: &Consumer, partition: Option<u32>) -> Result<BTreeMap<u32, u64>, CliError> {
    let count = client.describe_topic(consumer.topic()).await?.partitions.len();
    let all = 0..u32::try_from(count).unwrap_or(u32::MAX);
    let wanted: Vec<u32> = all.filter(|number| partition.is_none_or(|only| only == *number)).collect();
    let asked = wanted.into_iter().map(|number| (number, OffsetSpec::Latest));
    let ends = client.list_offsets(consumer.topic(), asked).await?;
    let unread = |&(number, end): &(u32, u64)| consumer.position(number).is_some_and(|position| position < end);
    Ok(ends.into_iter().map(|(number, end)| (number, end.offset)).filter(unread).collect())
}

/// When to stop.
struct Goal {
    /// Ends that are not reached yet; `None` to go on for ever.
    ends: Option<BTreeMap<u32, u64>>,
    /// How many more records to print.
    left: u64,
}

impl Goal {
    fn is_reached(&self) -> bool {
        self.left == 0 || self.ends.as_ref().is_some_and(BTreeMap::is_empty)
    }

    /// Cuts off what is past the goal, and takes note of the rest.
    fn admit(&mut self, batch: &mut ConsumedBatch) {
        if let Some(ends) = &mut self.ends {
            let last = batch.records.last().map_or(0, |record| record.offset);
            let end = ends.get(&batch.partition).copied().unwrap_or(0);
            batch.records.retain(|record| record.offset < end);
            if last + 1 >= end {
                ends.remove(&batch.partition);
            }
        }
        batch.records.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= batch.records.len() as u64;
    }
}

async fn print_all(mut consumer: Consumer, mut goal: Goal, printer: &mut Printer) -> Result<(), CliError> {
    while !goal.is_reached() {
        let waiting = tokio::select! {
            biased;
            batch = consumer.next_batch() => Some(batch),
            () = std::future::ready(()) => None,
        };
        let batch = match waiting {
            Some(batch) => batch,
            None => {
                printer.flush()?;
                consumer.next_batch().await
            }
        };
        match batch {
            Some(Ok(mut batch)) => {
                goal.admit(&mut batch);
                printer.print(&batch)?;
            }
            // The consumer goes on by itself, and so does whoever waits for new records.
            Some(Err(error)) if error.is_retriable() && goal.ends.is_none() => eprintln!("lance: {error}"),
            Some(Err(error)) => {
                printer.flush()?;
                return Err(error.into());
            }
            None => break,
        }
    }
    printer.flush()
}

struct Printer {
    format: Format,
    topic: String,
    buffer: Vec<u8>,
}

impl Printer {
    fn print(&mut self, batch: &ConsumedBatch) -> Result<(), CliError> {
        for record in &batch.records {
            self.format.write(&self.topic, record, &mut self.buffer);
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

#[cfg(test)]
mod tests {
    use super::*;
    use lnc_client::ConsumedRecord;

    fn batch(partition: u32, offsets: std::ops::Range<u64>) -> ConsumedBatch {
        let record =
            |offset| ConsumedRecord { partition, offset, timestamp_ms: 0, key: None, value: None, headers: Vec::new() };
        ConsumedBatch { partition, records: offsets.map(record).collect() }
    }

    fn admitted(goal: &mut Goal, mut batch: ConsumedBatch) -> Vec<u64> {
        goal.admit(&mut batch);
        batch.records.iter().map(|record| record.offset).collect()
    }

    #[test]
    fn starts() {
        let cases = [
            ("start", Start::Earliest),
            ("end", Start::Latest),
            ("17", Start::Offset(17)),
            ("@1500", Start::Timestamp(1500)),
            ("@1970-01-01T00:00:01Z", Start::Timestamp(1000)),
        ];
        for (text, start) in cases {
            assert_eq!(text.parse(), Ok(From(start)), "{text}");
        }
        for bad in ["", "-1", "begin", "@", "@noon"] {
            assert!(bad.parse::<From>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_end_is_that_of_each_partition() {
        let mut goal = Goal { ends: Some(BTreeMap::from([(0, 5), (1, 2)])), left: u64::MAX };
        assert_eq!(admitted(&mut goal, batch(0, 3..9)), [3, 4]);
        assert!(!goal.is_reached());
        assert!(admitted(&mut goal, batch(0, 9..10)).is_empty(), "written after the command began");
        assert_eq!(admitted(&mut goal, batch(1, 0..1)), [0]);
        assert!(!goal.is_reached());
        assert_eq!(admitted(&mut goal, batch(1, 1..2)), [1]);
        assert!(goal.is_reached());
    }

    #[test]
    fn the_count_is_exact() {
        let mut goal = Goal { ends: None, left: 3 };
        assert_eq!(admitted(&mut goal, batch(0, 0..2)), [0, 1]);
        assert_eq!(admitted(&mut goal, batch(1, 7..12)), [7]);
        assert!(goal.is_reached());
    }

    #[test]
    fn an_empty_topic_is_at_its_end() {
        assert!(Goal { ends: Some(BTreeMap::new()), left: u64::MAX }.is_reached());
    }
}
