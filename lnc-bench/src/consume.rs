//! Reads a topic with one consumer, a batch at a time.

use std::time::Instant;

use lnc_client::{Client, OffsetSpec, Start};
use tokio::runtime::Builder;
use tokio::time::timeout_at;

use crate::report::Report;
use crate::{BenchError, ConsumeArgs, From, cpu};

/// Reads and reports.
pub(crate) fn run(args: &ConsumeArgs) -> Result<Report, BenchError> {
    Builder::new_current_thread().enable_all().build()?.block_on(consume(args))
}

async fn consume(args: &ConsumeArgs) -> Result<Report, BenchError> {
    let topic = args.common.topic.as_str();
    let client = Client::builder().endpoints(args.common.endpoints.clone()).client_name("lnc-bench").build().await?;
    let partitions = client.describe_topic(topic).await?.partitions.len() as u32;
    // From the start: up to where the topic ends now. From the end there is no place to stop.
    let ends: Vec<u64> = match args.from {
        From::End => vec![u64::MAX; partitions as usize],
        From::Start => {
            let latest = (0..partitions).map(|partition| (partition, OffsetSpec::Latest));
            client.list_offsets(topic, latest).await?.into_iter().map(|(_, end)| end.offset).collect()
        }
    };
    let before = cpu::times_of(&args.common.server_pids)?;
    let started = Instant::now();
    let deadline = (started + args.duration).into();
    let start = if args.from == From::Start { Start::Earliest } else { Start::Latest };
    let mut consumer = client.consumer(topic).start(start).build().await?;
    let is_behind = |position: Option<u64>, end: u64| position.is_some_and(|position| position < end);
    let (mut records, mut bytes, mut finished) = (0u64, 0u64, started);
    while (0..).zip(&ends).any(|(partition, end)| is_behind(consumer.position(partition), *end)) {
        let Ok(Some(batch)) = timeout_at(deadline, consumer.next_batch()).await else {
            finished = Instant::now();
            break;
        };
        let batch = batch?.records;
        records += batch.len() as u64;
        bytes += batch.iter().map(|record| record.value.as_ref().map_or(0, |value| value.len() as u64)).sum::<u64>();
        finished = Instant::now();
    }
    let after = cpu::times_of(&args.common.server_pids)?;
    let load = format!("consume: one consumer of {partitions} partitions, from the {:?}", args.from).to_lowercase();
    let report = Report::new(load, finished - started, records, bytes);
    Ok(report.with_servers(&args.common.server_pids, &before, &after))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lnc_client::Record;

    use super::*;
    use crate::CommonArgs;
    use crate::support::Cluster;

    #[tokio::test]
    async fn reading_stops_at_the_end_and_counts_everything() {
        let cluster = Cluster::start(1, 2).await;
        let producer = cluster.client().await.producer("t").build().await.unwrap();
        for number in 0..300u32 {
            producer.enqueue(Record::new(vec![0; 10]).partition(number % 2)).await.unwrap();
        }
        producer.close().await.unwrap();
        let common = CommonArgs {
            endpoints: vec![cluster.address(1).into()],
            topic: "t".into(),
            server_pids: Vec::new(),
            json: false,
        };
        let mut args = ConsumeArgs { common, from: From::Start, duration: Duration::from_secs(10) };
        let report = consume(&args).await.unwrap();
        assert_eq!(report.records, 300);
        assert!(report.seconds < 5.0 && report.megabytes_per_second > 0.0, "{report}");
        (args.from, args.duration) = (From::End, Duration::from_millis(50));
        assert_eq!(consume(&args).await.unwrap().records, 0);
    }
}
