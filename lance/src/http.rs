//! The HTTP side door: metrics for Prometheus, health for whoever runs the node, the status page for people.
//!
//! | path | answers |
//! |---|---|
//! | `/metrics` | all metrics, in Prometheus' text format |
//! | `/healthz` | 200 while this node makes progress, else 503; once it has been 200, a restart is the cure for a 503 |
//! | `/readyz` | 200 while this node can serve clients, else 503 and the reason; waiting is the cure |
//! | `/` | the status page |
//! | `/status.json` | what the page and `lance top` draw from: see [`crate::status::document`] |
//!
//! Liveness looks at this node alone: a node that has lost its quorum must not be restarted for it.
//!
//! Each connection carries one request and has a fixed time to live, less for its headers, and there are few of them; whoever
//! comes takes the place of the one that has been silent for longest. So a slow or hostile client costs a bounded amount and
//! keeps no probe waiting. Metrics are rendered once for all who read them at the same time.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use lnc_metrics::Metrics;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Sleep;

use crate::foreign::{self, Port};
use crate::status::{self, Status, document};

/// A node whose shard did not beat for this long is stuck: a turn takes milliseconds, a slow sync of a sick disk may
/// take a second or two.
pub const BEAT_LIMIT: Duration = Duration::from_secs(5);

/// Connections at once that are enough.
pub const MOST_CONNECTIONS: usize = 64;

/// What connections may take: one request and its reply take milliseconds.
const LIMITS: Limits =
    Limits { connections: MOST_CONNECTIONS, head: Duration::from_secs(2), lifetime: Duration::from_secs(10) };

/// For how long metrics are shown as they were rendered, while others still read those.
const RENDERED_FOR: Duration = Duration::from_millis(250);

/// Whether this node makes progress, and whether it can serve.
#[derive(Debug)]
pub struct Health {
    state: Mutex<HealthState>,
}

#[derive(Debug)]
struct HealthState {
    last_beat: Instant,
    recovered: bool,
    ready: Result<(), String>,
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// Neither live nor ready yet.
    pub fn new() -> Self {
        let ready = Err("starting".to_owned());
        Self { state: Mutex::new(HealthState { last_beat: Instant::now(), recovered: false, ready }) }
    }

    /// Says that the shard made progress. Call it once a tick. The first time, the node has recovered.
    pub fn beat(&self) {
        let mut state = self.lock();
        state.last_beat = Instant::now();
        state.recovered = true;
    }

    /// Says whether clients can be served, or why not.
    pub fn set_ready(&self, ready: Result<(), String>) {
        self.lock().ready = ready;
    }

    /// Whether clients can be served, or why not.
    pub fn ready(&self) -> Result<(), String> {
        self.lock().ready.clone()
    }

    /// Time since the last progress; `None` while the node recovers, which may take as long as it takes.
    pub fn silence(&self) -> Option<Duration> {
        let state = self.lock();
        state.recovered.then(|| state.last_beat.elapsed())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HealthState> {
        // All fields are plain values that are replaced whole: a panic elsewhere cannot leave them half written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the routes show.
#[derive(Debug)]
pub struct HttpState {
    /// The node's metrics.
    pub metrics: Arc<Metrics>,
    /// The node's health.
    pub health: Arc<Health>,
    /// What the node knows of the cluster.
    pub status: Status,
    /// The metrics as they were rendered last.
    pub rendered: Mutex<Option<(Instant, Bytes)>>,
    /// Where the node listens, for those who come to the wrong port.
    pub places: Arc<foreign::Places>,
}

impl HttpState {
    /// Nothing is shown yet.
    pub fn new(metrics: Arc<Metrics>, health: Arc<Health>, status: Status, places: foreign::Places) -> Self {
        Self { metrics, health, status, rendered: Mutex::default(), places: Arc::new(places) }
    }

    /// The metrics as text, fresh, or the same bytes that somebody is reading still: many who read slowly hold few of them.
    fn rendered(&self) -> Bytes {
        let mut rendered = lock(&self.rendered);
        if let Some((_, text)) = rendered.as_ref().filter(|(at, text)| !text.is_unique() && at.elapsed() < RENDERED_FOR)
        {
            return text.clone();
        }
        let text = Bytes::from(self.metrics.render());
        *rendered = Some((Instant::now(), text.clone()));
        text
    }
}

/// Serves so many connections at once, until the future is dropped. A failed accept is retried.
pub async fn serve(listener: TcpListener, connections: usize, state: Arc<HttpState>) {
    let limits = Limits { connections, ..LIMITS };
    let listener = Bounded { listener, limits, open: Arc::default(), places: state.places.clone() };
    tokio::join!(serve_bounded(listener, state.clone()), state.status.sample());
}

async fn serve_bounded(listener: Bounded, state: Arc<HttpState>) {
    // axum retries errors of the listener itself and never returns one.
    let _ = axum::serve(listener, router(state)).await;
}

fn router(state: Arc<HttpState>) -> Router {
    Router::new()
        .route("/", get(status_page))
        .route("/status.json", get(status_document))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(async || one_request(StatusCode::NOT_FOUND, "not found\n"))
        .method_not_allowed_fallback(async || one_request(StatusCode::METHOD_NOT_ALLOWED, "use GET\n"))
        .with_state(state)
}

async fn metrics(State(state): State<Arc<HttpState>>) -> Response {
    let mut response = one_request(StatusCode::OK, state.rendered());
    let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, format);
    response
}

async fn healthz(State(state): State<Arc<HttpState>>) -> Response {
    match state.health.silence() {
        Some(silence) if silence < BEAT_LIMIT => one_request(StatusCode::OK, "ok\n"),
        Some(silence) => {
            one_request(StatusCode::SERVICE_UNAVAILABLE, format!("no progress for {} s\n", silence.as_secs()))
        }
        None => one_request(StatusCode::SERVICE_UNAVAILABLE, "recovering\n"),
    }
}

async fn readyz(State(state): State<Arc<HttpState>>) -> Response {
    match state.health.ready() {
        Ok(()) => one_request(StatusCode::OK, "ready\n"),
        Err(reason) => one_request(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn status_page() -> Response {
    let mut bytes = [0; 16];
    if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) != Ok(bytes.len()) {
        return one_request(StatusCode::INTERNAL_SERVER_ERROR, "the system gives no random numbers\n");
    }
    let nonce = format!("{:032x}", u128::from_le_bytes(bytes));
    let mut response = one_request(StatusCode::OK, status::page(&nonce));
    let policy = status::content_security_policy(&nonce);
    let policy = HeaderValue::from_str(&policy).expect("the policy is printable");
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    for_browsers(response, "text/html; charset=utf-8")
}

async fn status_document(
    State(state): State<Arc<HttpState>>,
    query: Result<Query<document::Query>, QueryRejection>,
) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(error) => {
            let text = format!("{error}; may be given: topics, skip, find, and sort=name, rate, size or records\n");
            return one_request(StatusCode::BAD_REQUEST, text);
        }
    };
    let document = state.status.document(&query).await;
    match serde_json::to_string(&document) {
        Ok(text) => for_browsers(one_request(StatusCode::OK, text), "application/json"),
        Err(error) => one_request(StatusCode::INTERNAL_SERVER_ERROR, format!("no document: {error}\n")),
    }
}

/// What a browser has to know of what it must not keep, and must not take for something else.
fn for_browsers(mut response: Response, content_type: &'static str) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// A text response after which the connection is closed.
fn one_request(status: StatusCode, text: impl Into<axum::body::Body>) -> Response {
    (status, [(header::CONNECTION, HeaderValue::from_static("close"))], text.into()).into_response()
}

/// A listener whose connections are limited in number and in time. Whoever comes when there is no room takes the place of one
/// that says nothing, or else of the oldest: a probe, which is answered within milliseconds, always gets in.
struct Bounded {
    listener: TcpListener,
    limits: Limits,
    open: Arc<Mutex<Open>>,
    places: Arc<foreign::Places>,
}

/// What connections may take.
#[derive(Clone, Copy)]
struct Limits {
    connections: usize,
    /// Time from a connection's accept to the first byte of the answer, which begins once the request's headers are there.
    head: Duration,
    /// Time from a connection's accept to its end.
    lifetime: Duration,
}

/// The connections that are open, oldest first.
#[derive(Default)]
struct Open {
    connections: VecDeque<Arc<Connection>>,
}

/// What a listener knows of a connection.
#[derive(Default)]
struct Connection {
    /// It is being answered.
    is_answered: AtomicBool,
    /// Its place was given to another.
    is_evicted: AtomicBool,
    /// Who waits for the connection's bytes.
    waker: Mutex<Option<Waker>>,
}

impl Open {
    /// A new connection has come; it may cost another its place.
    fn admit(&mut self, most: usize) -> Arc<Connection> {
        if self.connections.len() >= most {
            let is_silent = |connection: &Arc<Connection>| !connection.is_answered.load(Ordering::Relaxed);
            let at = self.connections.iter().position(is_silent).unwrap_or(0);
            if let Some(evicted) = self.connections.remove(at) {
                evicted.is_evicted.store(true, Ordering::Relaxed);
                lock(&evicted.waker).take().inspect(Waker::wake_by_ref);
            }
        }
        let connection = Arc::new(Connection::default());
        self.connections.push_back(connection.clone());
        connection
    }
}

impl axum::serve::Listener for Bounded {
    type Io = Mortal;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Mortal, Self::Addr) {
        let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
        let known = lock(&self.open).admit(self.limits.connections);
        let now = tokio::time::Instant::now();
        let timer = Box::pin(tokio::time::sleep_until(now + self.limits.head));
        let end = now + self.limits.lifetime;
        let (open, places) = (self.open.clone(), self.places.clone());
        (Mortal { stream, address, timer, end, known, open, places, has_begun: false }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing is half done where it can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection that fails once its time is over or its place is taken, whatever it is waiting for.
struct Mortal {
    stream: TcpStream,
    address: std::net::SocketAddr,
    /// Its first bytes have come.
    has_begun: bool,
    timer: Pin<Box<Sleep>>,
    /// When the timer fires once the answer has begun.
    end: tokio::time::Instant,
    known: Arc<Connection>,
    open: Arc<Mutex<Open>>,
    places: Arc<foreign::Places>,
}

impl Mortal {
    /// Pending while it may go on, an error afterwards.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        // Reading and writing are one task's.
        *lock(&self.known.waker) = Some(cx.waker().clone());
        if self.known.is_evicted.load(Ordering::Relaxed) {
            let text = "there are more connections than this node serves at once, and this one is the oldest";
            return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, text));
        }
        ready!(self.timer.as_mut().poll(cx));
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the connection's time is over"))
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        lock(&self.open).connections.retain(|connection| !Arc::ptr_eq(connection, &self.known));
    }
}

impl AsyncRead for Mortal {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_end(cx) {
            return Poll::Ready(Err(error));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if !std::mem::replace(&mut self.has_begun, true)
            && let Some(answer) = foreign::answer(&self.places, Port::Http, &buf.filled()[before..])
        {
            tracing::warn!(from = %self.address, "an HTTP connection is refused: {}", answer.text);
            // It fits into the socket's empty buffer.
            let _ = self.stream.try_write(&answer.bytes);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, answer.text)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Mortal {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.known.is_answered.swap(true, Ordering::Relaxed) {
            let end = self.end;
            self.timer.as_mut().reset(end);
        }
        if let Poll::Ready(error) = self.poll_end(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Server {
        address: std::net::SocketAddr,
        state: Arc<HttpState>,
        task: tokio::task::JoinHandle<()>,
    }

    impl Server {
        async fn start(limits: Limits) -> Self {
            let (metrics, health) = (Metrics::new(), Arc::new(Health::new()));
            let (status, _) = Status::new(1, metrics.clone(), health.clone());
            let state = Arc::new(HttpState::new(metrics, health, status, foreign::Places::default()));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let bounded = Bounded { listener, limits, open: Arc::default(), places: state.places.clone() };
            let task = tokio::spawn(serve_bounded(bounded, state.clone()));
            Self { address, state, task }
        }

        /// Status and body of one request.
        async fn get(&self, path: &str) -> (u16, String) {
            self.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
        }

        async fn send(&self, request: &str) -> (u16, String) {
            let (head, body) = self.exchange(request).await;
            (head.split(' ').nth(1).unwrap().parse().unwrap(), body)
        }

        /// Head and body of the answer to one request.
        async fn exchange(&self, request: &str) -> (String, String) {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains("connection: close"), "{head}");
            (head.to_owned(), body.to_owned())
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    #[tokio::test]
    async fn routes() {
        let server = Server::start(LIMITS).await;
        server.state.metrics.messages_in_total.inc_by(3);
        let (status, body) = server.get("/metrics").await;
        assert_eq!(status, 200);
        assert!(body.contains("\nlance_messages_in_total 3\n"), "{body}");

        assert_eq!(server.get("/healthz").await, (503, "recovering\n".to_owned()));
        server.state.health.beat();
        assert_eq!(server.get("/healthz").await, (200, "ok\n".to_owned()));
        assert_eq!(server.get("/").await.0, 200);
        assert_eq!(server.get("/metrics/x").await, (404, "not found\n".to_owned()));
        assert_eq!(server.get("/../etc/passwd").await.0, 404);
        let post = "POST /readyz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx";
        assert_eq!(server.send(post).await.0, 405);
    }

    #[tokio::test]
    async fn the_status_page_may_do_nothing_but_fetch_from_this_node() {
        let server = Server::start(LIMITS).await;
        let get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        let (head, body) = server.exchange(get).await;
        for line in [
            "content-type: text/html; charset=utf-8",
            "cache-control: no-store",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
        ] {
            assert!(head.lines().any(|found| found == line), "{line}: {head}");
        }
        let policy = head.lines().find_map(|line| line.strip_prefix("content-security-policy: ")).unwrap();
        assert!(policy.starts_with("default-src 'none';") && policy.contains("connect-src 'self'"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        let nonce = policy.split("script-src 'nonce-").nth(1).unwrap().split('\'').next().unwrap();
        assert_eq!(nonce.len(), 32, "{policy}");
        assert!(body.contains(&format!("<script nonce=\"{nonce}\">")));
        assert!(!server.exchange(get).await.1.contains(nonce), "a nonce is used once");
    }

    #[tokio::test]
    async fn the_status_document_is_json_whatever_the_shard_does() {
        let server = Server::start(LIMITS).await;
        server.state.health.set_ready(Err("waiting for nodes 2, 3".to_owned()));
        let request = "GET /status.json?topics=3&sort=size HTTP/1.1\r\nHost: x\r\n\r\n";
        let (head, body) = server.exchange(request).await;
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("content-type: application/json"), "{head}");
        let document: document::Document = serde_json::from_str(&body).unwrap();
        assert_eq!((document.node, document.view), (1, None));
        assert_eq!(document.not_ready.as_deref(), Some("waiting for nodes 2, 3"));
        for bad in ["sort=upwards", "topics=-1", "skip=x", "what=1"] {
            let (status, text) = server.get(&format!("/status.json?{bad}")).await;
            assert_eq!(status, 400, "{bad}");
            assert!(text.contains("sort=name, rate, size or records"), "{text}");
        }
    }

    #[tokio::test]
    async fn readiness_tells_why_not() {
        let server = Server::start(LIMITS).await;
        assert_eq!(server.get("/readyz").await, (503, "starting\n".to_owned()));
        server.state.health.set_ready(Ok(()));
        assert_eq!(server.get("/readyz").await, (200, "ready\n".to_owned()));
        server.state.health.set_ready(Err("group 1 has no leader".to_owned()));
        assert_eq!(server.get("/readyz").await, (503, "group 1 has no leader\n".to_owned()));
    }

    #[tokio::test]
    async fn a_silent_shard_is_not_live() {
        let server = Server::start(LIMITS).await;
        server.state.health.beat();
        server.state.health.lock().last_beat =
            Instant::now().checked_sub(BEAT_LIMIT).expect("the host is up for longer");
        assert_eq!(server.get("/healthz").await, (503, "no progress for 5 s\n".to_owned()));
        server.state.health.beat();
        assert_eq!(server.get("/healthz").await.0, 200);
    }

    #[tokio::test]
    async fn who_says_nothing_makes_room_for_who_asks() {
        let server = Server::start(LIMITS).await;
        server.state.health.beat();
        let mut silent = Vec::new();
        for _ in 0..LIMITS.connections {
            silent.push(TcpStream::connect(server.address).await.unwrap());
        }
        // However often they come back.
        for round in 0..100 {
            silent.push(TcpStream::connect(server.address).await.unwrap());
            let answer = tokio::time::timeout(Duration::from_secs(5), server.get("/healthz")).await;
            assert_eq!(answer.ok().map(|(status, _)| status), Some(200), "round {round}");
        }
        let mut first = silent.swap_remove(0);
        assert_eq!(first.read(&mut [0]).await.unwrap_or(0), 0, "the oldest is gone");
    }

    #[tokio::test]
    async fn who_reads_nothing_makes_room_too() {
        let server = Server::start(Limits { connections: 4, ..LIMITS }).await;
        let long = Bytes::from(vec![b'x'; 64 << 20]);
        *lock(&server.state.rendered) = Some((Instant::now() + Duration::from_secs(60), long.clone()));
        let mut readers = Vec::new();
        for _ in 0..4 {
            let mut reader = TcpStream::connect(server.address).await.unwrap();
            reader.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            reader.read_exact(&mut [0; 16]).await.unwrap();
            readers.push(reader);
        }
        server.state.health.beat();
        assert_eq!(server.get("/healthz").await.0, 200, "one of those who read nothing has lost its place");
    }

    #[tokio::test]
    async fn headers_and_connections_have_their_time() {
        let limits = Limits { head: Duration::from_millis(200), lifetime: Duration::from_millis(600), connections: 2 };
        let server = Server::start(limits).await;
        let mut silent = TcpStream::connect(server.address).await.unwrap();
        let began = Instant::now();
        assert_eq!(silent.read(&mut [0]).await.unwrap_or(0), 0, "the connection is closed");
        assert!(began.elapsed() >= limits.head);
        let long = Bytes::from(vec![b'x'; 64 << 20]);
        *lock(&server.state.rendered) = Some((Instant::now() + Duration::from_secs(60), long.clone()));
        let mut slow = TcpStream::connect(server.address).await.unwrap();
        slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        tokio::time::sleep(limits.lifetime).await;
        let mut got = Vec::new();
        let _ = slow.read_to_end(&mut got).await;
        assert!(!got.is_empty() && got.len() < 64 << 20, "it ends in the middle: {}", got.len());
    }

    #[tokio::test]
    async fn all_who_ask_within_a_moment_get_the_same_bytes() {
        let server = Server::start(LIMITS).await;
        let (first, second) = (server.state.rendered(), server.state.rendered());
        assert_eq!(first.as_ptr(), second.as_ptr());
    }
}
