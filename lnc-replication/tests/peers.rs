//! The channels between brokers against a peer that goes quiet, over real sockets.

use bytes::{Bytes, BytesMut};
use lnc_log::journal::GroupId;
use lnc_metrics::Metrics;
use lnc_raft::{Body, Entry, EntryKind, Message, NodeId};
use lnc_replication::formation::{Channel, Cluster, Formats, Greeting, Identity, MAX_VERSION};
use lnc_replication::peers::{PeerEvent, Peers};
use lnc_replication::wire::{MAX_FRAME_BODY, PeerMessage, put_frame, take_frame, take_message};
use std::cell::{Cell, RefCell};
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

/// Bytes that may wait to be sent to one node.
const QUEUE: usize = 256 << 20;

fn identity(node: NodeId) -> Identity {
    let members = BTreeMap::from([(OWN, 11), (PEER, 22)]);
    let incarnation = members[&node];
    Identity { node, incarnation, cluster: Some(Cluster::found(members, 3)) }
}

fn greeting(channel: Channel, identity: Identity) -> Greeting {
    Greeting { channel, identity, refusal: None, formats: Formats::BUILD, run: 7, twin: 0 }
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
        let channel = answer_greeting(&mut stream, identity(PEER)).await;
        (channel, stream)
    }
}

async fn answer_greeting(stream: &mut TcpStream, identity: Identity) -> Channel {
    let body = read_frame(stream, &mut BytesMut::new()).await;
    let hello = Greeting::decode(body).unwrap();
    assert_eq!((hello.identity.node, hello.refusal), (OWN, None));
    let reply = greeting(hello.channel, identity);
    let mut out = BytesMut::new();
    put_frame(&mut out, |body| reply.encode(body));
    stream.write_all(&out).await.unwrap();
    hello.channel
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
    (
        Peers::start(
            listener,
            (identity(OWN), 1),
            Formats::BUILD,
            (addresses, QUEUE),
            Metrics::new(),
            Box::new(events),
        ),
        lost,
    )
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

/// Whether the connection to the peer stands.
fn stands(peers: &Peers) -> bool {
    peers.connected().iter().any(|(peer, greeted)| (*peer, greeted.formats) == (PEER, Formats::BUILD))
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
        while !stands(&peers) {
            yield_now().await;
        }
        while stands(&peers) {
            peers.send(&mut (0..5000).map(heartbeat).collect());
            yield_now().await;
        }
        let mut again = peer.accept(Channel::Control).await;
        assert_eq!(lost.get(), 1);
        let arrived = first_arrival(&peers, &mut again, heartbeat(1_000_000)).await;
        // Nothing of the old queue came along.
        assert!(matches!(arrived, Body::Heartbeat { round: 1_000_000, .. }), "{arrived:?}");
        assert!(stands(&peers));
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
    /// What later versions have put behind it: formats, and which process it is.
    const LATER: usize = 8 + 16;
    greet(address, &greeting(Channel::Control, identity(PEER)), LATER).await.1
}

/// Dial and greet, without the last bytes of the greeting; the connection and the answer.
async fn greet(address: &str, greeting: &Greeting, without: usize) -> (TcpStream, Greeting) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut body = BytesMut::new();
    greeting.encode(&mut body);
    let mut out = BytesMut::new();
    put_frame(&mut out, |frame| frame.extend_from_slice(&body[..body.len() - without]));
    stream.write_all(&out).await.unwrap();
    let answer = Greeting::decode(read_frame(&mut stream, &mut BytesMut::new()).await).unwrap();
    (stream, answer)
}

/// The channels of node 1, which dials nobody; the address, and what they reported.
async fn listening() -> (Rc<Peers>, String, Rc<RefCell<Vec<PeerEvent>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let events = Rc::new(RefCell::new(Vec::new()));
    let noted = events.clone();
    let note = Box::new(move |event| noted.borrow_mut().push(event));
    let peers =
        Peers::start(listener, (identity(OWN), 1), Formats::BUILD, (BTreeMap::new(), QUEUE), Metrics::new(), note);
    (peers, address, events)
}

#[tokio::test]
async fn what_a_stranger_says_of_the_members_changes_nothing() {
    run(async {
        let (peers, address, events) = listening().await;
        let before = peers.identity();
        for (node, incarnation) in [(NodeId(9), 9), (PEER, 99), (NodeId(4), 44)] {
            let mut stranger = Identity { node, incarnation, ..identity(PEER) };
            let cluster = stranger.cluster.as_mut().unwrap();
            cluster.version = MAX_VERSION;
            cluster.members = BTreeMap::from([(OWN, 11), (node, incarnation)]);
            let (_, answer) = greet(&address, &greeting(Channel::Control, stranger), 0).await;
            assert!(answer.refusal.is_some());
            assert_eq!(peers.identity(), before);
        }
        assert!(events.borrow().iter().all(|event| matches!(event, PeerEvent::Knocked(_))));
        let (_kept, answer) = greet(&address, &greeting(Channel::Control, identity(PEER)), 0).await;
        assert_eq!(answer.refusal, None, "a member is admitted all the same");
    })
    .await;
}

/// Whoever listens where a member that is down is known to be: it is dialled, and says what it likes.
#[tokio::test]
async fn what_is_said_at_the_address_of_a_dead_member_changes_nothing_either() {
    run(async {
        let (peer, impostor) = (QuietPeer::new(), QuietPeer::new());
        let address = |peer: &QuietPeer| peer.listener.local_addr().unwrap().to_string();
        let known = BTreeMap::from([(PEER.node(), address(&peer)), (3, address(&impostor))]);
        let events = Rc::new(RefCell::new(Vec::new()));
        let noted = events.clone();
        let note = Box::new(move |event| noted.borrow_mut().push(event));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peers = Peers::start(listener, (identity(OWN), 1), Formats::BUILD, (known, QUEUE), Metrics::new(), note);
        let before = peers.identity();
        let mut forged = Identity { node: NodeId(3), incarnation: 31337, ..identity(PEER) };
        let cluster = forged.cluster.as_mut().unwrap();
        cluster.version = MAX_VERSION;
        cluster.members = BTreeMap::from([(OWN, before.incarnation), (NodeId(3), 31337)]);
        let (mut unnamed, mut said) = (forged.clone(), 0);
        unnamed.cluster.as_mut().unwrap().members.remove(&OWN);
        for lie in [forged, unnamed].iter().cycle().take(6) {
            let (mut stream, _) = impostor.listener.accept().await.unwrap();
            let hello = Greeting::decode(read_frame(&mut stream, &mut BytesMut::new()).await).unwrap();
            // As one that refuses, too: it would say that this node was removed, or copied.
            let refusal = (said % 2 == 1).then(|| "you were removed".to_owned());
            let reply = Greeting { refusal, twin: 7, ..greeting(hello.channel, lie.clone()) };
            let mut out = BytesMut::new();
            put_frame(&mut out, |body| reply.encode(body));
            stream.write_all(&out).await.unwrap();
            said += 1;
        }
        assert_eq!(peers.identity(), before);
        let harmless = |event: &PeerEvent| match event {
            PeerEvent::Twin { .. } | PeerEvent::Refused { removed: Some(_), .. } => false,
            PeerEvent::Admitted { peer } => *peer == PEER,
            _ => true,
        };
        assert!(events.borrow().iter().all(harmless));
    })
    .await;
}

/// Who was away while all that it knew went has nobody else to ask: after a while alone, and not before, it believes who is where
/// a member is known to be.
#[tokio::test]
async fn who_is_alone_for_a_while_believes_whom_it_dials() {
    run(async {
        let peer = QuietPeer::new();
        let known = BTreeMap::from([(PEER.node(), peer.listener.local_addr().unwrap().to_string())]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (own, nothing) = ((identity(OWN), 1), Box::new(|_| ()));
        let began = std::time::Instant::now();
        let peers = Peers::start(listener, own, Formats::BUILD, (known, QUEUE), Metrics::new(), nothing);
        let before = peers.identity();
        // The same node in a later life, which only a later list of members has.
        let mut later = Identity { incarnation: 222, ..identity(PEER) };
        let cluster = later.cluster.as_mut().unwrap();
        cluster.version = before.cluster.as_ref().unwrap().version + 3;
        cluster.members.insert(PEER, 222);
        let mut answers = 0;
        while peers.identity() == before {
            let (mut stream, _) = peer.listener.accept().await.unwrap();
            answer_greeting(&mut stream, later.clone()).await;
            answers += 1;
            tokio::task::yield_now().await;
        }
        assert!(
            answers > 4 && began.elapsed() >= std::time::Duration::from_secs(5),
            "{answers}: {:?}",
            began.elapsed()
        );
        assert_eq!(peers.identity().cluster.unwrap().members[&PEER], 222);
    })
    .await;
}

/// A member that knows a later list is asked for it when somebody speaks of one who is not on the list known so far.
#[tokio::test]
async fn a_newcomer_is_admitted_once_a_member_vouches_for_it() {
    run(async {
        let peer = QuietPeer::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let known = BTreeMap::from([(PEER.node(), peer.listener.local_addr().unwrap().to_string())]);
        let (own, nothing) = ((identity(OWN), 1), Box::new(|_| ()));
        let peers = Peers::start(listener, own, Formats::BUILD, (known, QUEUE), Metrics::new(), nothing);
        let newcomer = NodeId(4);
        let with_newcomer = |node: NodeId, incarnation| {
            let mut identity = Identity { node, incarnation, ..identity(PEER) };
            let cluster = identity.cluster.as_mut().unwrap();
            cluster.version = 5;
            cluster.members.insert(newcomer, 44);
            identity
        };
        // The peer greets with what it knew when it was dialled, and later with what it knows then.
        let mut standing = Vec::new();
        for _ in 0..2 {
            let (mut stream, _) = peer.listener.accept().await.unwrap();
            answer_greeting(&mut stream, identity(PEER)).await;
            standing.push(stream);
        }
        let later = async {
            loop {
                let (mut stream, _) = peer.listener.accept().await.unwrap();
                answer_greeting(&mut stream, with_newcomer(PEER, 22)).await;
            }
        };
        let knock = greeting(Channel::Control, with_newcomer(newcomer, 44));
        let knocks = async {
            while greet(&address, &knock, 0).await.1.refusal.is_some() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = later => unreachable!("it never ends"),
            () = knocks => {}
        }
        assert_eq!(peers.identity().cluster.unwrap().version, 5);
    })
    .await;
}

#[tokio::test]
async fn a_second_process_of_a_node_is_refused_and_both_are_told() {
    run(async {
        let (_peers, address, _) = listening().await;
        let greeting_of = |channel, run| Greeting { run, ..greeting(channel, identity(PEER)) };
        let (_control, answer) = greet(&address, &greeting_of(Channel::Control, 7), 0).await;
        assert_eq!((answer.refusal, answer.run), (None, 1));
        let (mut data, answer) = greet(&address, &greeting_of(Channel::Replication, 7), 0).await;
        assert_eq!(answer.refusal, None);
        let refused = loop {
            let (_, answer) = greet(&address, &greeting_of(Channel::Control, 8), 0).await;
            let reason = answer.refusal.expect("the first one stands");
            if answer.twin != 0 {
                break (reason, answer.twin);
            }
            sleep(Duration::from_millis(100)).await;
        };
        assert!(refused.0.contains("was copied") && refused.1 == 7, "{refused:?}");
        // The first one loses the channel on which nothing is lost, and hears why when it comes again.
        assert_eq!(data.read_buf(&mut BytesMut::new()).await.unwrap_or(0), 0);
        let (_, answer) = greet(&address, &greeting_of(Channel::Replication, 7), 0).await;
        assert_eq!(answer.twin, 8, "{:?}", answer.refusal);
        let (_data, answer) = greet(&address, &greeting_of(Channel::Replication, 7), 0).await;
        assert_eq!((answer.refusal, answer.twin), (None, 0));
    })
    .await;
}

#[tokio::test]
async fn a_process_that_was_started_anew_is_let_in_when_its_former_self_is_gone() {
    run(async {
        let (_peers, address, _) = listening().await;
        let greeting_of = |run| Greeting { run, ..greeting(Channel::Control, identity(PEER)) };
        let (control, _) = greet(&address, &greeting_of(7), 0).await;
        let (_, answer) = greet(&address, &greeting_of(8), 0).await;
        assert!(answer.refusal.is_some() && answer.twin == 0, "{answer:?}");
        drop(control);
        while greet(&address, &greeting_of(8), 0).await.1.refusal.is_some() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_older_version_takes_part_until_the_format_is_raised() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let nobody = BTreeMap::new();
        let peers = Peers::start(
            listener,
            (identity(OWN), 1),
            Formats::BUILD,
            (nobody, QUEUE),
            Metrics::new(),
            Box::new(|_| ()),
        );
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

/// Those who only connect are many; a member is admitted all the same, and the first of them are gone before their time.
#[tokio::test]
async fn strangers_who_say_nothing_keep_nobody_out() {
    run(async {
        let (_peers, address, _) = listening().await;
        let mut silent = Vec::new();
        for _ in 0..200 {
            silent.push(TcpStream::connect(&address).await.unwrap());
        }
        let start = Instant::now();
        let (_, answer) = greet(&address, &greeting(Channel::Control, identity(PEER)), 0).await;
        assert!(answer.refusal.is_none(), "{answer:?}");
        let mut first = silent.swap_remove(0);
        assert_eq!(first.read(&mut [0; 1]).await.unwrap(), 0);
        assert!(start.elapsed() < Duration::from_secs(1), "it had its time, and not its place");
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
