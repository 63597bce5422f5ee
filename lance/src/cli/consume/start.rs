//! Where `lance consume` starts, as `--from` says it, and which partitions `--partition` names.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use lnc_client::{Client, Consumer, OffsetSpec, Position, Start};
use tokio::time::Instant;

use crate::cli::error::CliError;
use crate::cli::time::parse_time;

/// Where to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// As the client library knows it.
    At(Start),
    /// So many records before the end of each partition.
    Last(u64),
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let from = match (text, text.strip_prefix('@'), text.strip_prefix('-')) {
            ("start" | "earliest", ..) => Some(Self::At(Start::Earliest)),
            ("end" | "latest", ..) => Some(Self::At(Start::Latest)),
            (_, Some(time), _) => parse_time(time, SystemTime::now()).map(|time| Self::At(Start::Timestamp(time))),
            (_, _, Some(count)) => count.parse().ok().map(Self::Last),
            (offset, ..) => offset.parse().ok().map(|offset| Self::At(Start::Offset(offset))),
        };
        let expected = "must be start, end, an offset, -N for the last N records of each partition, or @TIME such as \
                        @2026-05-01, @2026-05-01T12:00:00Z or @-1h";
        from.ok_or_else(|| expected.to_owned())
    }
}

impl From {
    pub(super) fn start(self) -> Start {
        match self {
            Self::At(start) => start,
            Self::Last(_) => Start::Latest,
        }
    }

    /// Moves a consumer that stands at the end back, where that is asked for.
    pub(super) async fn step_back(self, client: &Client, consumer: &mut Consumer) -> Result<(), CliError> {
        let Self::Last(count) = self else { return Ok(()) };
        let asked: Vec<u32> = positions(consumer).into_keys().collect();
        let asked = asked.into_iter().map(|number| (number, OffsetSpec::Earliest));
        for (number, earliest) in client.list_offsets(consumer.topic(), asked).await? {
            let end = consumer.position(number).unwrap_or(0);
            consumer.seek(number, end.saturating_sub(count).max(earliest.offset))?;
        }
        Ok(())
    }

    /// Refuses a start that only a leader knows, where there is none.
    pub(super) fn check_stale(self) -> Result<(), CliError> {
        match self {
            Self::At(Start::Earliest | Start::Offset(_)) => Ok(()),
            _ => Err(CliError::usage("--stale reads --from start or from an offset: the rest is for a leader to say")),
        }
    }

    /// Refuses an offset that is beyond the end of a partition, if the present end is where reading stops: it would
    /// never be read, and nothing printed looks like nothing stored.
    pub(super) fn check(self, topic: &str, extents: &BTreeMap<u32, Extent>) -> Result<(), CliError> {
        let Self::At(Start::Offset(offset)) = self else { return Ok(()) };
        let beyond = extents.iter().filter(|(_, extent)| extent.end < offset);
        let ends: Vec<String> =
            beyond.map(|(number, extent)| format!("partition {number} ends at {}", extent.end)).collect();
        let (told, ends) = (format!("offset {offset} is beyond the end of {topic}"), (ends.len(), ends.join(", ")));
        match ends {
            (0, _) => Ok(()),
            (all, ends) if all == extents.len() => Err(CliError::failed(format!("{told}: {ends}; nothing was read"))),
            // The others have records from there on.
            (_, ends) => {
                eprintln!("lance: {told} in part: {ends}; nothing is read of those");
                Ok(())
            }
        }
    }
}

/// What there is to read of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Where reading starts.
    pub(super) position: u64,
    /// The end as it is now.
    pub(super) end: u64,
}

/// The partitions that a consumer reads, and where it stands in each.
fn positions(consumer: &Consumer) -> BTreeMap<u32, u64> {
    consumer.positions().into_iter().map(|at| (at.partition, at.offset)).collect()
}

/// What there is to read of each partition that a consumer reads.
pub(super) async fn extents(client: &Client, consumer: &Consumer) -> Result<BTreeMap<u32, Extent>, CliError> {
    let positions = positions(consumer);
    let asked = positions.keys().map(|&number| (number, OffsetSpec::Latest));
    let ends = client.list_offsets(consumer.topic(), asked).await?;
    let extent = |(number, end): (u32, lnc_client::ListedOffset)| {
        Some((number, Extent { position: *positions.get(&number)?, end: end.offset }))
    };
    Ok(ends.into_iter().filter_map(extent).collect())
}

/// The same, as the nodes know it that answer the first fetches: no leader is asked.
pub(super) async fn known(client: &Client, consumer: &Consumer) -> Result<BTreeMap<u32, Extent>, CliError> {
    /// Between two looks whether they have been answered.
    const LOOK: Duration = Duration::from_millis(10);
    let deadline = Instant::now() + client.request_timeout();
    loop {
        let extent = |at: &Position| {
            let end = consumer.high_watermark(at.partition)?;
            Some((at.partition, Extent { position: at.offset, end }))
        };
        let positions = consumer.positions();
        let extents: BTreeMap<u32, Extent> = positions.iter().filter_map(extent).collect();
        let Some(open) = positions.iter().find(|at| !extents.contains_key(&at.partition)) else { return Ok(extents) };
        if Instant::now() >= deadline {
            let (topic, partition) = (consumer.topic(), open.partition);
            return Err(CliError::unreachable(format!("no node gives anything of partition {partition} of {topic}")));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The partitions to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Partitions(pub(super) Option<Vec<u32>>);

impl FromStr for Partitions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self(None));
        }
        let numbers: Result<Vec<u32>, _> = text.split(',').map(str::parse).collect();
        numbers.map(|numbers| Self(Some(numbers))).map_err(|_| "must be all, or numbers such as 0 or 0,2".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts() {
        let cases = [
            ("start", From::At(Start::Earliest)),
            ("earliest", From::At(Start::Earliest)),
            ("end", From::At(Start::Latest)),
            ("latest", From::At(Start::Latest)),
            ("17", From::At(Start::Offset(17))),
            ("-10", From::Last(10)),
            ("@1500", From::At(Start::Timestamp(1500))),
            ("@1970-01-01T00:00:01Z", From::At(Start::Timestamp(1000))),
            ("@1970-01-02", From::At(Start::Timestamp(86_400_000))),
        ];
        for (text, from) in cases {
            assert_eq!(text.parse(), Ok(from), "{text}");
        }
        for bad in ["", "-", "--1", "begin", "@", "@noon", "@-"] {
            assert!(bad.parse::<From>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_offset_beyond_an_end_is_refused_with_the_ends() {
        let extents = BTreeMap::from([(0, Extent { position: 9, end: 9 }), (1, Extent { position: 9, end: 3 })]);
        let refused = From::At(Start::Offset(10)).check("t", &extents).unwrap_err();
        let ends = "partition 0 ends at 9, partition 1 ends at 3";
        assert_eq!(refused.message(), format!("offset 10 is beyond the end of t: {ends}; nothing was read"));
        assert!(From::At(Start::Offset(9)).check("t", &extents).is_ok(), "one of them has it");
        assert!(From::At(Start::Offset(3)).check("t", &extents).is_ok());
        assert!(From::At(Start::Latest).check("t", &extents).is_ok());
    }

    #[test]
    fn partitions_are_all_or_numbers() {
        assert_eq!("all".parse(), Ok(Partitions(None)));
        assert_eq!("3".parse(), Ok(Partitions(Some(vec![3]))));
        assert_eq!("0,2".parse(), Ok(Partitions(Some(vec![0, 2]))));
        for bad in ["", "none", "-1", "1,", "0;1"] {
            assert!(bad.parse::<Partitions>().is_err(), "{bad}");
        }
    }
}
