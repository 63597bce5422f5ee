//! A batch that is sent again is stored once, whoever leads by then.

use super::support::cluster::Cluster;
use super::support::eventually;
use super::support::wire::{self, Answer, Wire};
use bytes::Bytes;
use lnc_protocol::message::{InitProducerResponse, ProduceResponse};
use lnc_protocol::{ErrorCode, Flags};

/// A batch of two records from this place of a producer's sequence.
fn numbered(producer: &InitProducerResponse, sequence: i32) -> Bytes {
    let values = [format!("record {sequence}"), format!("record {}", sequence + 1)];
    wire::sequenced(
        producer.producer_id,
        producer.producer_epoch,
        sequence,
        values.iter().map(|value| value.as_bytes()),
    )
}

/// Sends a batch until the cluster has an answer that is not "try again".
#[track_caller]
fn settle(cluster: &Cluster, ids: &[u64], batch: &Bytes) -> Answer<ProduceResponse> {
    eventually("a produce is settled", || {
        ids.iter().find_map(|id| {
            let mut wire = Wire::connect(&cluster.nodes[*id as usize - 1].client()).ok()?;
            let answer = wire.produce(wire::produce("t", 0, batch.clone()), Flags::NONE).ok()?;
            match answer {
                Err(error) if error.code.is_retriable() => None,
                settled => Some(settled),
            }
        })
    })
}

#[test]
fn a_repeated_batch_is_a_duplicate_after_failover_and_after_a_restart_of_all() {
    // Checkpoints are frequent, so that the last restart starts from one and from the journal behind it.
    let mut cluster = Cluster::start_with(&["journal.checkpoint_bytes=1MiB"]);
    let group = cluster.create_topic("t", 1, &[])[0];
    let leader = cluster.leader(group);
    let producer = cluster.wire(leader).init_producer().unwrap();
    let everyone = [1, 2, 3];

    let first = settle(&cluster, &[leader], &numbered(&producer, 0)).unwrap();
    assert_eq!((first.duplicate, first.base_offset), (false, Some(0)));
    cluster.node(leader).kill();
    let others = cluster.others(leader);
    let again = settle(&cluster, &others, &numbered(&producer, 0)).unwrap();
    assert_eq!((again.duplicate, again.base_offset), (true, Some(0)), "the new leader knows the batch");
    let gap = settle(&cluster, &others, &numbered(&producer, 4)).unwrap_err();
    assert_eq!(gap.code, ErrorCode::OutOfOrderSequence, "{gap}");
    let second = settle(&cluster, &others, &numbered(&producer, 2)).unwrap();
    assert_eq!((second.duplicate, second.base_offset), (false, Some(2)));
    cluster.node(leader).start();
    cluster.wait_ready();

    // What the checkpoint holds, and after it what only the journal holds.
    cluster.ok(&["produce", "t", "--quiet"], &vec![b'\n'; 400_000]);
    eventually("a checkpoint is made everywhere", || {
        let made = |text: String| !text.contains("\nlance_checkpoints_total 0\n");
        cluster.nodes.iter().all(|node| made(node.metrics())).then_some(())
    });
    let third = settle(&cluster, &everyone, &numbered(&producer, 4)).unwrap();
    assert!(!third.duplicate);
    cluster.kill_all();
    cluster.start_all();
    cluster.wait_ready();

    let other_producer = cluster.wire(1).init_producer().unwrap();
    assert_ne!(other_producer.producer_id, producer.producer_id, "an id is given out once");
    for (sequence, stored) in [(4, &third), (2, &second)] {
        let again = settle(&cluster, &everyone, &numbered(&producer, sequence)).unwrap();
        assert_eq!((again.duplicate, again.base_offset), (true, stored.base_offset), "sequence {sequence}");
    }
    let gap = settle(&cluster, &everyone, &numbered(&producer, 8)).unwrap_err();
    assert_eq!(gap.code, ErrorCode::OutOfOrderSequence, "{gap}");
    let end = third.base_offset.unwrap() + 2;
    cluster.assert_replicas_equal("t", 0, end);
    let next = settle(&cluster, &everyone, &numbered(&producer, 6)).unwrap();
    assert_eq!((next.duplicate, next.base_offset), (false, Some(end)));
}
