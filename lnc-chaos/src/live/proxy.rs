//! TCP proxies in front of the nodes, one for their peers and one for their clients each: they forward, delay, cut one way
//! or both, break connections, and leave them half open.
//!
//! Who dials a node's peer port says so in the first frame, its greeting; that is how a connection gets its link. A link
//! that is cut takes no more bytes and gives none: to both ends this looks like a network that drops, until their kernels
//! or they themselves give up. When it is healed, what was held goes on, as TCP would have it.

use super::error::{Result, os};
use super::network::Cut;
use super::node::{Addresses, free_address};
use bytes::{Bytes, BytesMut};
use lnc_replication::formation::Greeting;
use lnc_replication::wire::take_frame;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Clients as one end of a link.
const CLIENTS: u64 = 0;
/// Largest greeting between nodes, in bytes.
const MAX_GREETING: usize = 16 << 10;
/// Bytes that one direction of a connection holds before it reads no more.
const MAX_HELD: usize = 1 << 20;
/// Room for one read.
const CHUNK: usize = 64 << 10;

/// What all links are to do now.
#[derive(Clone, Debug, Default)]
struct Weather {
    /// Links that let nothing through: from whom, to whom.
    cut: BTreeSet<(u64, u64)>,
    /// How long bytes between nodes take.
    delay: Duration,
    /// How often all connections between nodes were broken.
    resets: u64,
    /// How often connections were left half open, and those of which node.
    half_opens: u64,
    half_open: Option<u64>,
}

impl Weather {
    fn delay_of(&self, link: (u64, u64)) -> Duration {
        if link.0 == CLIENTS || link.1 == CLIENTS { Duration::ZERO } else { self.delay }
    }
}

/// See the module documentation. The proxies end with this value.
pub(super) struct Proxies {
    /// Where the nodes themselves listen.
    pub(super) listen: Vec<Addresses>,
    /// Where others reach them: the proxies.
    pub(super) told: Vec<Addresses>,
    weather: watch::Sender<Weather>,
    _tasks: JoinSet<()>,
}

impl Proxies {
    pub(super) async fn start(nodes: u64) -> Result<Self> {
        let (weather, watch) = watch::channel(Weather::default());
        let (mut listen, mut told) = (Vec::new(), Vec::new());
        let mut tasks = JoinSet::new();
        for node in 1..=nodes {
            let inner = Addresses::free()?;
            let outer = Addresses { client: free_address()?, peer: free_address()?, http: inner.http };
            for (at, target, from) in [(outer.client, inner.client, Some(CLIENTS)), (outer.peer, inner.peer, None)] {
                let listener = TcpListener::bind(at).await.map_err(os(format!("listen on {at} for node {node}")))?;
                tasks.spawn(accept(listener, Line { from, to: node, target }, watch.clone()));
            }
            listen.push(inner);
            told.push(outer);
        }
        Ok(Self { listen, told, weather, _tasks: tasks })
    }

    pub(super) fn cut(&mut self, cut: Cut) {
        let nodes = self.told.len() as u64;
        self.weather.send_modify(|weather| {
            weather.cut = links(cut, nodes);
        });
    }

    pub(super) fn delay(&mut self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }

    pub(super) fn reset(&mut self) {
        self.weather.send_modify(|weather| weather.resets += 1);
    }

    pub(super) fn half_open(&mut self, node: u64) {
        self.weather.send_modify(|weather| {
            weather.half_opens += 1;
            weather.half_open = Some(node);
        });
    }

    pub(super) fn heal(&mut self) {
        self.weather.send_modify(|weather| {
            *weather = Weather { resets: weather.resets, half_opens: weather.half_opens, ..Weather::default() };
        });
    }
}

/// The links that a cut concerns.
fn links(cut: Cut, nodes: u64) -> BTreeSet<(u64, u64)> {
    let first = if matches!(cut, Cut::Isolated(_)) { CLIENTS } else { 1 };
    let (Cut::Alone(node) | Cut::Mute(node) | Cut::Isolated(node)) = cut;
    let others = (first..=nodes).filter(|other| *other != node);
    let both = |other| [(node, other), (other, node)];
    others.flat_map(both).filter(|(from, _)| !matches!(cut, Cut::Mute(_)) || *from == node).collect()
}

/// What a listener is for.
#[derive(Clone, Copy)]
struct Line {
    /// Who dials; `None` if its greeting says so.
    from: Option<u64>,
    to: u64,
    target: SocketAddr,
}

async fn accept(listener: TcpListener, line: Line, weather: watch::Receiver<Weather>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                let weather = weather.clone();
                // How a connection ends is seen at its ends.
                connections.spawn(async move { drop(carry(stream, line, weather).await) });
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// How a connection is to end.
enum End {
    /// One side has closed it or failed.
    Closed,
    Reset,
    /// Broken on the side of this node only.
    HalfOpen(u64),
}

/// See one connection through.
async fn carry(mut dialled: TcpStream, line: Line, mut weather: watch::Receiver<Weather>) -> io::Result<()> {
    dialled.set_nodelay(true)?;
    let mut first = BytesMut::new();
    let from = match line.from {
        Some(from) => from,
        None => greeting_node(&mut dialled, &mut first).await?,
    };
    let link = (from, line.to);
    let passes = |weather: &Weather| !weather.cut.contains(&link) && !weather.cut.contains(&(link.1, link.0));
    // A connection attempt into a cut gets no answer.
    weather.wait_for(passes).await.map_err(io::Error::other)?;
    let mut target = TcpStream::connect(line.target).await?;
    target.set_nodelay(true)?;
    let end = {
        let (dialled_reader, dialled_writer) = dialled.split();
        let (target_reader, target_writer) = target.split();
        let there = Pump { link, held: VecDeque::new(), held_bytes: 0, weather: weather.clone() };
        let back = Pump { link: (link.1, link.0), held: VecDeque::new(), held_bytes: 0, weather: weather.clone() };
        tokio::select! {
            end = ending(link, weather.clone()) => end,
            // One side may have said all and still listen.
            _ = async {
                tokio::try_join!(
                    there.run(first.freeze(), dialled_reader, target_writer),
                    back.run(Bytes::new(), target_reader, dialled_writer),
                )
            } => End::Closed,
        }
    };
    if let End::HalfOpen(node) = end {
        // What is kept is not read any more, so its other end sees a peer that hangs.
        let _kept = if node == line.to {
            drop(target);
            dialled
        } else {
            drop(dialled);
            target
        };
        weather.wait_for(|weather| weather.half_open.is_none()).await.map_err(io::Error::other)?;
    }
    Ok(())
}

/// Wait for the weather to end a connection.
async fn ending(link: (u64, u64), mut weather: watch::Receiver<Weather>) -> End {
    if link.0 == CLIENTS {
        return std::future::pending().await;
    }
    let (resets, half_opens) = {
        let now = weather.borrow();
        (now.resets, now.half_opens)
    };
    loop {
        if weather.changed().await.is_err() {
            return End::Reset;
        }
        let now = weather.borrow();
        if now.resets != resets {
            return End::Reset;
        }
        if let Some(node) = now.half_open.filter(|node| now.half_opens != half_opens && [link.0, link.1].contains(node))
        {
            return End::HalfOpen(node);
        }
    }
}

/// Read the first frame between nodes; gives who sent it, and leaves all bytes in `first`.
async fn greeting_node(stream: &mut TcpStream, first: &mut BytesMut) -> io::Result<u64> {
    loop {
        let frame = take_frame(&mut first.clone(), MAX_GREETING).map_err(io::Error::other)?;
        if let Some(body) = frame {
            return Greeting::decode(body).map(|greeting| greeting.identity.node.node()).map_err(io::Error::other);
        }
        if stream.read_buf(first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// One direction of a connection.
struct Pump {
    link: (u64, u64),
    /// What was read and is not due yet.
    held: VecDeque<(Instant, Bytes)>,
    held_bytes: usize,
    weather: watch::Receiver<Weather>,
}

impl Pump {
    /// Carry bytes, `first` before all others, until one side closes.
    async fn run(
        mut self,
        first: Bytes,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) -> io::Result<()> {
        if !first.is_empty() {
            self.hold(first);
        }
        let mut chunk = BytesMut::new();
        let mut ended = false;
        loop {
            let cut = self.weather.borrow_and_update().cut.contains(&self.link);
            let due = self.held.front().map(|(due, _)| *due);
            if ended && due.is_none() {
                return to.shutdown().await;
            }
            chunk.reserve(CHUNK);
            tokio::select! {
                changed = self.weather.changed() => changed.map_err(io::Error::other)?,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() && !cut => {
                    if let Some((_, bytes)) = self.held.pop_front() {
                        self.held_bytes -= bytes.len();
                        to.write_all(&bytes).await?;
                    }
                }
                read = from.read_buf(&mut chunk), if !ended && !cut && self.held_bytes < MAX_HELD => {
                    ended = read? == 0;
                    if !ended {
                        self.hold(chunk.split().freeze());
                    }
                }
            }
        }
    }

    fn hold(&mut self, bytes: Bytes) {
        self.held_bytes += bytes.len();
        let delay = self.weather.borrow().delay_of(self.link);
        self.held.push_back((Instant::now() + delay, bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    /// A proxy for clients of one echoing server, and a connection through it.
    async fn echo() -> (Proxies, TcpStream) {
        let proxies = Proxies::start(1).await.unwrap();
        let server = TcpListener::bind(proxies.listen[0].client).await.unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = server.accept().await.unwrap();
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                });
            }
        });
        let stream = TcpStream::connect(proxies.told[0].client).await.unwrap();
        (proxies, stream)
    }

    async fn answer(stream: &mut TcpStream, within: Duration) -> Option<u8> {
        timeout(within, stream.read_u8()).await.ok()?.ok()
    }

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_cut_holds_bytes_back_until_it_is_healed() {
        let (mut proxies, mut stream) = echo().await;
        stream.write_u8(1).await.unwrap();
        assert_eq!(answer(&mut stream, SOON).await, Some(1));
        proxies.cut(Cut::Isolated(1));
        stream.write_u8(2).await.unwrap();
        assert_eq!(answer(&mut stream, Duration::from_millis(200)).await, None);
        let mut another = TcpStream::connect(proxies.told[0].client).await.unwrap();
        another.write_u8(3).await.unwrap();
        assert_eq!(answer(&mut another, Duration::from_millis(100)).await, None);
        proxies.heal();
        assert_eq!((answer(&mut stream, SOON).await, answer(&mut another, SOON).await), (Some(2), Some(3)));
    }

    #[tokio::test]
    async fn the_end_of_a_connection_goes_through() {
        let (_proxies, mut stream) = echo().await;
        stream.write_all(b"abc").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut all = Vec::new();
        timeout(SOON, stream.read_to_end(&mut all)).await.unwrap().unwrap();
        assert_eq!(all, b"abc");
    }

    #[tokio::test]
    async fn bytes_between_nodes_are_delayed_and_stay_in_order() {
        let (weather, watch) = watch::channel(Weather { delay: Duration::from_millis(80), ..Weather::default() });
        let (mut near, proxy_near) = tokio::io::duplex(1024);
        let (proxy_far, mut far) = tokio::io::duplex(1024);
        let pump = Pump { link: (1, 2), held: VecDeque::new(), held_bytes: 0, weather: watch };
        tokio::spawn(pump.run(Bytes::new(), proxy_near, proxy_far));
        let begin = Instant::now();
        near.write_all(b"ab").await.unwrap();
        near.write_all(b"cd").await.unwrap();
        let mut got = [0; 4];
        timeout(SOON, far.read_exact(&mut got)).await.unwrap().unwrap();
        assert!(&got == b"abcd" && begin.elapsed() >= Duration::from_millis(80));
        drop(weather);
    }

    #[tokio::test]
    async fn weather_ends_connections_between_nodes_only_and_half_opens_those_of_a_node() {
        let (weather, watch) = watch::channel(Weather::default());
        let concerned = tokio::spawn(ending((1, 2), watch.clone()));
        let other = tokio::spawn(ending((1, 3), watch.clone()));
        let client = tokio::spawn(ending((CLIENTS, 2), watch));
        // Let them look before the weather changes.
        tokio::task::yield_now().await;
        weather.send_modify(|weather| {
            weather.half_opens = 1;
            weather.half_open = Some(2);
        });
        assert!(matches!(timeout(SOON, concerned).await.unwrap().unwrap(), End::HalfOpen(2)));
        weather.send_modify(|weather| weather.resets = 1);
        assert!(matches!(timeout(SOON, other).await.unwrap().unwrap(), End::Reset));
        assert!(!client.is_finished());
    }

    #[test]
    fn cuts_concern_the_links_that_they_should() {
        assert_eq!(links(Cut::Alone(1), 3), BTreeSet::from([(1, 2), (2, 1), (1, 3), (3, 1)]));
        assert_eq!(links(Cut::Mute(1), 3), BTreeSet::from([(1, 2), (1, 3)]));
        assert!(links(Cut::Isolated(1), 3).is_superset(&BTreeSet::from([(0, 1), (1, 0), (3, 1)])));
    }
}
