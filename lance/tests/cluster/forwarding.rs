//! Any node takes any request: it serves it, passes it on, or says who leads.

use super::support::cluster::Cluster;
use super::support::wire::{self, Wire};
use super::support::{assert_same, eventually};
use lnc_protocol::message::{ProduceRequest, TopicOptions};
use lnc_protocol::{ErrorCode, ErrorReply, Flags, Request, Response};

/// A node that leads neither of the groups.
fn follower_of(cluster: &Cluster, groups: [u32; 2]) -> u64 {
    eventually("some node follows in both groups", || {
        let leaders = groups.map(|group| cluster.leader(group));
        (1..=3).find(|id| !leaders.contains(id))
    })
}

#[test]
fn a_follower_passes_everything_on() {
    let cluster = Cluster::start();
    let mut wire = cluster.wire(follower_of(&cluster, [0, 1]));
    let ask = |wire: &mut Wire, request: &Request| wire.ask(request, Flags::NONE).unwrap().unwrap();
    let topic = match ask(&mut wire, &wire::create("t", 3, TopicOptions::default())) {
        Response::CreateTopic(topic) => topic,
        other => panic!("{other:?}"),
    };
    assert_eq!(topic.partitions.len(), 3);
    let producer = wire.init_producer().unwrap();
    for partition in 0..3 {
        for sequence in 0..20 {
            let value = format!("record {sequence} of partition {partition}").into_bytes();
            let batch = wire::sequenced(producer.producer_id, producer.producer_epoch, sequence, [&value[..]]);
            let done = wire.produce(wire::produce("t", partition, batch), Flags::NONE).unwrap().unwrap();
            assert_eq!((done.base_offset, done.duplicate), (Some(sequence as u64), false));
        }
        cluster.assert_replicas_equal("t", partition, 20);
    }
    assert_eq!(ask(&mut wire, &wire::delete("t")), Response::DeleteTopic);
    let error = wire.ask(&wire::delete("t"), Flags::NONE).unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::UnknownTopic);
}

#[test]
fn who_does_not_want_to_be_forwarded_is_told_the_leader() {
    let cluster = Cluster::start();
    let group = cluster.create_topic("t", 1, &[])[0];
    let produce = || wire::produce("t", 0, wire::batch([&b"x"[..]]));
    let told = |error: ErrorReply| {
        assert_eq!(error.code, ErrorCode::NotLeader, "{error}");
        error.leader.expect("the leader's address")
    };
    // Leadership may move between a look and a request: a hint is right if its node serves the request.
    eventually("a follower's hint leads to the leader", || {
        let leader = cluster.leader(group);
        let mut wire = cluster.wire(cluster.others(leader)[0]);
        let hint = told(wire.produce(produce(), Flags::NO_FORWARD).unwrap().err()?);
        assert_eq!(hint.address, cluster.nodes[hint.node_id as usize - 1].client());
        let done = Wire::connect(&hint.address).unwrap().produce(produce(), Flags::NO_FORWARD).unwrap();
        done.ok()
    });
    eventually("a follower's hint leads to the catalog's leader", || {
        let mut wire = cluster.wire(cluster.others(cluster.leader(0))[0]);
        let request = wire::create("u", 1, TopicOptions::default());
        let hint = told(wire.ask(&request, Flags::NO_FORWARD).unwrap().err()?);
        let done = Wire::connect(&hint.address).unwrap().ask(&request, Flags::NO_FORWARD).unwrap();
        done.ok()
    });
    // A request that has been passed on once is not passed on again.
    eventually("a forwarded request is not forwarded", || {
        let mut wire = cluster.wire(cluster.others(cluster.leader(group))[0]);
        let error = wire.produce(produce(), Flags::FORWARDED).unwrap().err()?;
        Some(told(error))
    });
}

#[test]
fn a_reply_belongs_to_its_request_when_many_are_forwarded_at_once() {
    let cluster = Cluster::start();
    let groups = cluster.create_topic("t", 3, &[]);
    let follower = follower_of(&cluster, [groups[0], groups[1]]);
    let mut wire = cluster.wire(follower);
    let mut asked = std::collections::BTreeMap::new();
    for number in 0..300u32 {
        let partition = number % 3;
        let value = format!("{number}").into_bytes();
        let request = Request::Produce(ProduceRequest { ..wire::produce("t", partition, wire::batch([&value[..]])) });
        asked.insert(wire.send_request(&request, Flags::NONE).unwrap(), (partition, value));
    }
    let mut placed = std::collections::BTreeMap::new();
    while !asked.is_empty() {
        let frame = wire.next_frame().unwrap().unwrap();
        let (partition, value) = asked.remove(&frame.header.correlation).expect("a reply to a request of this test");
        let reply = lnc_protocol::decode_reply(lnc_protocol::Opcode::Produce, frame.body).unwrap();
        match reply.result {
            Ok(Response::Produce(done)) => {
                assert_eq!(done.partition, partition);
                assert!(placed.insert((partition, done.base_offset.unwrap()), value).is_none());
            }
            // Leadership moved meanwhile; a producer would try again.
            Err(error) if error.code.is_retriable() => {}
            other => panic!("{other:?}"),
        }
    }
    for ((partition, offset), value) in placed {
        let found = cluster.wire(cluster.leader(groups[partition as usize])).fetch(wire::fetch("t", partition, offset));
        let batch = lnc_protocol::batch::split(found.unwrap().records.into_bytes()).next().unwrap().unwrap();
        let record = lnc_protocol::batch::records(&batch, &lnc_protocol::Limits::default()).unwrap().next().unwrap();
        assert_same("the record at the offset of its reply", &record.unwrap().value.unwrap(), &value);
    }
}
