//! The channels between brokers against a peer that goes quiet, over real sockets.

use bytes::{Bytes, BytesMut};
use lnc_log::journal::GroupId;
use lnc_metrics::Metrics;
use lnc_raft::{Body, Entry, EntryKind, Message, NodeId};
use lnc_replication::formation::{Channel, Cluster, Formats, Greeting, Identity};
use lnc_replication::peers::{PeerEvent, Peers};
use lnc_replication::wire::{MAX_FRAME_BODY, PeerMessage, put_frame, take_frame, take_message};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{LocalSet, yield_now};
use tokio::time::{sleep, timeout};

const OWN: NodeId = NodeId(1);
const PEER: NodeId = NodeId(2);

/// Longest time that a test may take: what hangs fails.
const PATIENCE: Duration = Duration::from_secs(30);

fn identity(node: NodeId) -> Identity {
    let members = BTreeMap::from([(OWN, 11), (PEER, 22)]);
    let incarnation = members[&node];
    Identity { node, incarnation, cluster: Some(Cluster::found(members, 3)) }
}

/// A peer that greets whoever connects, and from then on does what its test says.
struct QuietPeer {
    listener: TcpListener,
    /// Connections of channels that the test does not ask for.
    others: Vec<TcpStream>,
}

impl QuietPeer {
    fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        // Connections inherit it: little fits into one that is not read.
        socket.set_recv_buffer_size(64 << 10).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self { listener: socket.listen(16).unwrap(), others: Vec::new() }
    }

    /// The next connection for `channel`, greeted.
    async fn accept(&mut self, channel: Channel) -> TcpStream {
        loop {
            let (accepted, stream) = self.accept_any().await;
            if accepted == channel {
                return stream;
            }
            self.others.push(stream);
        }
    }

    /// The next connection, greeted.
    async fn accept_any(&mut self) -> (Channel, TcpStream) {
        let (mut stream, _) = self.listener.accept().await.unwrap();
        let body = read_frame(&mut stream, &mut BytesMut::new()).await;
        let hello = Greeting::decode(body).unwrap();
        assert_eq!((hello.identity.node, hello.refusal), (OWN, None));
        let reply =
            Greeting { channel: hello.channel, identity: identity(PEER), refusal: None, formats: Formats::BUILD };
        let mut out = BytesMut::new();
        put_frame(&mut out, |body| reply.encode(body));
        stream.write_all(&out).await.unwrap();
        (hello.channel, stream)
    }
}

async fn read_frame(stream: &mut TcpStream, buf: &mut BytesMut) -> Bytes {
    loop {
        if let Some(body) = take_frame(buf, MAX_FRAME_BODY).unwrap() {
            return body;
        }
        assert_ne!(stream.read_buf(buf).await.unwrap(), 0, "the connection ended");
    }
}

/// The channels of node 1, whose only peer is `peer`, and how often they reported it lost.
async fn start(peer: &QuietPeer) -> (Rc<Peers>, Rc<Cell<u32>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = BTreeMap::from([(PEER.node(), peer.listener.local_addr().unwrap().to_string())]);
    let lost = Rc::new(Cell::new(0));
    let count = lost.clone();
    let events = move |event| {
        if matches!(event, PeerEvent::Lost(PEER)) {
            count.set(count.get() + 1);
        }
    };
    (Peers::start(listener, identity(OWN), Formats::BUILD, addresses, Metrics::new(), Box::new(events)), lost)
}

fn heartbeat(round: u64) -> PeerMessage {
    let body = Body::Heartbeat { commit: 0, leader_commit: 0, round };
    PeerMessage::Raft(GroupId(1), Message { from: OWN, to: PEER, term: 1, body })
}

fn append(prev_index: u64, payload: Bytes) -> PeerMessage {
    let entry = Entry { term: 1, index: prev_index + 1, kind: EntryKind::Normal, payload };
    let body = Body::Append { prev_index, prev_term: 1, commit: 0, entries: vec![entry] };
    PeerMessage::Raft(GroupId(1), Message { from: OWN, to: PEER, term: 1, body })
}

/// Send `message` until one arrives on `stream`: the peer's end of a connection is ready before the dialler knows.
async fn first_arrival(peers: &Peers, stream: &mut TcpStream, message: PeerMessage) -> Body {
    let send = async {
        loop {
            peers.send(&mut vec![message.clone()]);
            sleep(Duration::from_millis(5)).await;
        }
    };
    let mut buf = BytesMut::new();
    tokio::select! {
        () = send => unreachable!("it never ends"),
        mut body = read_frame(stream, &mut buf) => match take_message(&mut body, PEER) {
            Ok(PeerMessage::Raft(_, message)) => message.body,
            other => panic!("not a message of Raft: {other:?}"),
        },
    }
}

async fn run(test: impl Future<Output = ()>) {
    timeout(PATIENCE, LocalSet::new().run_until(test)).await.expect("the test should have ended");
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_given_up_and_dialled_again() {
    run(async {
        let mut peer = QuietPeer::new();
        let (peers, lost) = start(&peer).await;
        let _stuck = peer.accept(Channel::Control).await;
        while !peers.connected().contains(&(PEER, Formats::BUILD)) {
            yield_now().await;
        }
        while peers.connected().contains(&(PEER, Formats::BUILD)) {
            peers.send(&mut (0..5000).map(heartbeat).collect());
            yield_now().await;
        }
        let mut again = peer.accept(Channel::Control).await;
        assert_eq!(lost.get(), 1);
        let arrived = first_arrival(&peers, &mut again, heartbeat(1_000_000)).await;
        // Nothing of the old queue came along.
        assert!(matches!(arrived, Body::Heartbeat { round: 1_000_000, .. }), "{arrived:?}");
        assert!(peers.connected().contains(&(PEER, Formats::BUILD)));
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_stalls_with_little_queued_is_replaced() {
    run(async {
        let mut peer = QuietPeer::new();
        let (peers, lost) = start(&peer).await;
        // Kept open by the peer, which reads no more.
        let mut stuck = peer.accept(Channel::Replication).await;
        first_arrival(&peers, &mut stuck, append(1, Bytes::new())).await;
        // More than the sockets hold, and far below what may wait: only the kernel can tell that it is stuck.
        peers.send(&mut (0..32).map(|i| append(i, vec![0; 1 << 20].into())).collect());
        let mut again = peer.accept(Channel::Replication).await;
        let arrived = first_arrival(&peers, &mut again, append(99, Bytes::new())).await;
        assert!(matches!(arrived, Body::Append { prev_index: 99, .. }), "{arrived:?}");
        assert_eq!(lost.get(), 0, "the control connection stands");
    })
    .await;
}

/// Greet as a build does that knows format 1 alone and does not say so, and give the answer.
async fn greet_as_the_first_version(address: &str) -> Greeting {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let formats = Formats { oldest: 1, newest: 1 };
    let greeting = Greeting { channel: Channel::Control, identity: identity(PEER), refusal: None, formats };
    let mut body = BytesMut::new();
    greeting.encode(&mut body);
    let mut out = BytesMut::new();
    put_frame(&mut out, |frame| frame.extend_from_slice(&body[..body.len() - 8]));
    stream.write_all(&out).await.unwrap();
    Greeting::decode(read_frame(&mut stream, &mut BytesMut::new()).await).unwrap()
}

#[tokio::test]
async fn an_older_version_takes_part_until_the_format_is_raised() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let nobody = BTreeMap::new();
        let peers = Peers::start(listener, identity(OWN), Formats::BUILD, nobody, Metrics::new(), Box::new(|_| ()));
        let answer = greet_as_the_first_version(&address).await;
        assert_eq!((answer.refusal, answer.formats), (None, Formats::BUILD));
        let raised = Formats::BUILD.in_cluster(2);
        peers.set_formats(raised);
        let answer = greet_as_the_first_version(&address).await;
        assert_eq!(answer.formats, raised);
        assert!(answer.refusal.is_some_and(|words| words.starts_with("no common format")));
    })
    .await;
}

/// Time from sending each of `count` heartbeats to its arrival; the median and the longest.
async fn heartbeat_times(peers: &Peers, stream: &mut TcpStream, count: u64) -> (Duration, Duration) {
    let mut buf = BytesMut::new();
    let mut times = Vec::new();
    for round in 1..=count {
        let start = Instant::now();
        peers.send(&mut vec![heartbeat(round)]);
        let mut body = read_frame(stream, &mut buf).await;
        times.push(start.elapsed());
        let Ok(PeerMessage::Raft(_, message)) = take_message(&mut body, PEER) else { panic!("not a message of Raft") };
        assert!(matches!(message.body, Body::Heartbeat { round: arrived, .. } if arrived == round));
    }
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() - 1])
}

/// Data is queued that the peer does not take, far more than sockets hold; heartbeats arrive as if there were none.
#[tokio::test]
async fn a_saturated_replication_channel_delays_no_heartbeat() {
    const HEARTBEATS: u64 = 200;
    const APPENDS: u64 = 64;
    run(async {
        let mut peer = QuietPeer::new();
        let (peers, _) = start(&peer).await;
        let (mut control, mut data) = (None, None);
        while control.is_none() || data.is_none() {
            match peer.accept_any().await {
                (Channel::Control, stream) => control = Some(stream),
                (Channel::Replication, stream) => data = Some(stream),
            }
        }
        let (mut control, mut data) = (control.unwrap(), data.unwrap());
        // Both stand once something has arrived on each.
        first_arrival(&peers, &mut data, append(1, Bytes::new())).await;
        first_arrival(&peers, &mut control, heartbeat(0)).await;
        let mut buf = BytesMut::new();
        peers.send(&mut vec![heartbeat(u64::MAX)]);
        loop {
            // What was sent while the dialler did not know yet.
            let mut body = read_frame(&mut control, &mut buf).await;
            let Ok(PeerMessage::Raft(_, message)) = take_message(&mut body, PEER) else { panic!("not a message") };
            if matches!(message.body, Body::Heartbeat { round: u64::MAX, .. }) {
                break;
            }
        }
        let (quiet, _) = heartbeat_times(&peers, &mut control, HEARTBEATS).await;
        peers.send(&mut (0..APPENDS).map(|i| append(i, vec![0; 1 << 20].into())).collect());
        let (saturated, longest) = heartbeat_times(&peers, &mut control, HEARTBEATS).await;
        println!("median of heartbeats: {quiet:?} quiet, {saturated:?} saturated, {longest:?} at worst");
        assert!(saturated < 10 * quiet + Duration::from_millis(2), "{quiet:?}, then {saturated:?}");
        assert!(longest < Duration::from_millis(500), "{longest:?}");

        // All that time the data was waiting.
        let mut waited = 0;
        while waited < APPENDS << 20 {
            waited += data.read_buf(&mut buf).await.unwrap() as u64;
            buf.clear();
        }
    })
    .await;
}
