//! The client: finds the broker that a request belongs to, and tries again when that turns out to be another one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lnc_protocol::ErrorCode;
use lnc_protocol::frame::Flags;
use lnc_protocol::message::{ErrorReply, MetadataRequest, Reply, Request, Response};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::backoff::Backoff;
use crate::connection::{ConnectOptions, Connection};
use crate::consumer::ConsumerBuilder;
use crate::error::{Error, Operation, Result};
use crate::metadata::{Metadata, TopicInfo};
use crate::pool::{Pool, Purpose};
use crate::producer::ProducerBuilder;

/// How often in a row a request follows a hint at once. Brokers that point at each other have not agreed yet.
pub(crate) const MAX_REDIRECTS: u32 = 2;

/// How long a leader may be silent before another broker is asked whether it still leads. A broker that is cut off or
/// stopped does not say so, and is replaced in less time than this.
pub(crate) const SILENCE: Duration = Duration::from_secs(1);

/// The longest attempt of a request that is not a fetch or a produce request. A broker that forwards it to a leader
/// that has just stopped learns nothing from waiting longer.
const LONGEST_CALL: Duration = Duration::from_secs(3);

/// How long an attempt to connect may take before another broker is tried as well: the delay that RFC 8305 recommends.
const NEXT_ATTEMPT: Duration = Duration::from_millis(250);

/// An attempt gets this fraction of the request timeout, so that a broker that hangs leaves time for another.
const ATTEMPTS_PER_TIMEOUT: u32 = 3;

/// A client of a LANCE cluster. Cheap to clone; all clones share connections and metadata.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    bootstrap: Vec<Arc<str>>,
    request_timeout: Duration,
    pool: Pool,
    metadata: Metadata,
    /// Which of the candidates served the last request that any broker may serve.
    preferred: AtomicUsize,
}

/// Configures a [`Client`]. Made by [`Client::builder`].
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    endpoints: Vec<String>,
    request_timeout: Duration,
    cluster_id: Option<u128>,
    connect: ConnectOptions,
    refusal_is_final: bool,
}

impl ClientBuilder {
    /// The addresses ("host:port") of some brokers; one that is reachable is enough to find the others.
    pub fn endpoints<I>(mut self, endpoints: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.endpoints = endpoints.into_iter().map(Into::into).collect();
        self
    }

    /// How the client introduces itself in the brokers' logs. Default: "lnc-client".
    pub fn client_name(mut self, name: impl Into<String>) -> Self {
        self.connect.client_name = name.into();
        self
    }

    /// How long an operation may take in all, including its retries; one attempt gets a third of that
    /// at most. Default: 30 s.
    /// A producer's records have their own
    /// [`delivery_timeout`](crate::ProducerBuilder::delivery_timeout).
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// The cluster that the endpoints must belong to, as [`Client::cluster_id`] told before. Default: that of the first broker
    /// that answers. A broker of another one is refused with [`Error::OtherCluster`].
    pub fn cluster_id(mut self, cluster_id: u128) -> Self {
        self.cluster_id = Some(cluster_id);
        self
    }

    /// How long one attempt to connect may take. Default: 2 s, so that an attempt of a request has time for another
    /// broker.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect.timeout = timeout;
        self
    }

    /// The longest reply accepted from a broker, in bytes. Default: 64 MiB. Must hold what one fetch asks for and at
    /// least one whole batch.
    pub fn max_reply_bytes(mut self, bytes: usize) -> Self {
        self.connect.max_reply_bytes = bytes;
        self
    }

    /// Whether [`ClientBuilder::build`] fails at once if every endpoint refuses the connection, for somebody who waits at a
    /// terminal. Default: false, which is right for a service that may start before the brokers.
    pub fn refusal_is_final(mut self, is_final: bool) -> Self {
        self.refusal_is_final = is_final;
        self
    }

    /// Connects to the cluster. Fails if no endpoint answers within the request timeout.
    pub async fn build(self) -> Result<Client> {
        let deadline = Instant::now() + self.request_timeout;
        let invalid = |setting, problem: &str| Err(Error::InvalidSetting { setting, problem: problem.into() });
        if self.endpoints.is_empty() {
            return invalid("endpoints", "at least one address is needed");
        }
        if let Some(endpoint) = self.endpoints.iter().find(|endpoint| !endpoint.contains(':')) {
            return invalid("endpoints", &format!("`{endpoint}` is not of the form host:port"));
        }
        if self.request_timeout.is_zero() || self.connect.timeout.is_zero() {
            return invalid("timeout", "must be more than zero");
        }
        let inner = Inner {
            bootstrap: self.endpoints.into_iter().map(Arc::from).collect(),
            request_timeout: self.request_timeout,
            pool: Pool::new(self.connect, self.cluster_id),
            metadata: Metadata::default(),
            preferred: AtomicUsize::new(0),
        };
        let client = Client { inner: Arc::new(inner) };
        if self.refusal_is_final
            && let Ok(Err(error)) = timeout_at(deadline, client.any(Purpose::Requests, None)).await
            && error.is_refusal()
        {
            return Err(error);
        }
        let ping = Call { deadline: Some(deadline), ..Call::new(Operation::new("connect"), Request::Ping) };
        client.call(ping).await?;
        Ok(client)
    }
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// To any broker that can be reached; it forwards the request if need be.
    Any,
    /// To the leader of a partition, if it is known and can be reached; else to any.
    Leader { topic: Arc<str>, partition: u32 },
}

/// A request on its way, with what is needed to try it more than once.
pub(crate) struct Call {
    pub(crate) operation: Operation,
    pub(crate) target: Target,
    pub(crate) request: Request,
    /// When to give up; after the request timeout if not given.
    pub(crate) deadline: Option<Instant>,
}

impl Call {
    pub(crate) fn new(operation: Operation, request: Request) -> Self {
        Call { operation, target: Target::Any, request, deadline: None }
    }

    pub(crate) fn at_leader(mut self, topic: &Arc<str>, partition: u32) -> Self {
        self.target = Target::Leader { topic: topic.clone(), partition };
        self
    }
}

/// What a call brought.
pub(crate) struct Outcome {
    pub(crate) response: Response,
    /// The address of the broker that answered.
    pub(crate) address: Arc<str>,
}

/// How a call failed.
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// Whether an attempt before the last one may have taken effect.
    pub(crate) repeated: bool,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

impl Client {
    /// Starts configuring a client.
    ///
    /// ```no_run
    /// # async fn example() -> lnc_client::Result<()> {
    /// use lnc_client::Client;
    ///
    /// let client = Client::builder().endpoints(["127.0.0.1:1992"]).client_name("billing").build().await?;
    /// client.ensure_topic("orders", 3).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> ClientBuilder {
        ClientBuilder {
            endpoints: Vec::new(),
            request_timeout: Duration::from_secs(30),
            cluster_id: None,
            connect: ConnectOptions::default(),
            refusal_is_final: false,
        }
    }

    /// Starts configuring a producer for a topic.
    pub fn producer(&self, topic: &str) -> ProducerBuilder {
        ProducerBuilder::new(self.clone(), topic)
    }

    /// Starts configuring a consumer of a topic.
    pub fn consumer(&self, topic: &str) -> ConsumerBuilder {
        ConsumerBuilder::new(self.clone(), topic)
    }

    /// How long an operation may take in all.
    pub fn request_timeout(&self) -> Duration {
        self.inner.request_timeout
    }

    /// The id of the cluster. A cluster that is made anew has another one, also at the same addresses.
    pub fn cluster_id(&self) -> u128 {
        // There has been a connection, or there would be no client.
        self.inner.pool.cluster().unwrap_or_default()
    }

    /// How many connections this client and its clones have made in the place of others that had ended.
    pub fn reconnects(&self) -> u64 {
        self.inner.pool.reconnects()
    }

    /// How long one attempt of an operation may take.
    pub(crate) fn attempt_timeout(&self) -> Duration {
        self.inner.request_timeout / ATTEMPTS_PER_TIMEOUT
    }

    /// How long one attempt of a [`Call`] may take.
    pub(crate) fn call_timeout(&self) -> Duration {
        self.attempt_timeout().min(LONGEST_CALL)
    }

    /// How long a broker should work on a request before it answers `Timeout`: a little less than the attempt lasts,
    /// so that the answer arrives.
    pub(crate) fn broker_timeout_ms(attempt: Duration) -> u32 {
        (attempt * 4 / 5).as_millis().clamp(1, u128::from(u32::MAX)) as u32
    }

    pub(crate) fn metadata_cache(&self) -> &Metadata {
        &self.inner.metadata
    }

    /// Carries out a request: picks the broker, and while the failure is one that passes, tries again until the
    /// deadline.
    pub(crate) async fn call(&self, call: Call) -> std::result::Result<Outcome, Failure> {
        let after = self.inner.request_timeout;
        let deadline = call.deadline.unwrap_or_else(|| Instant::now() + after);
        let mut backoff = Backoff::new();
        let mut repeated = false;
        let mut redirects = 0;
        let mut cause = None;
        loop {
            let error = match self.attempt(&call, deadline).await {
                Ok((response, address)) => return Ok(Outcome { response, address }),
                Err(error) => error,
            };
            // That nobody answered in time says less than what a broker has said before, and that an attempt took too long less than
            // what an earlier one has met.
            let says_less = |before: &Error| match error.code() {
                None => before.code().is_some() || matches!(error, Error::DeadlineExceeded { .. }),
                Some(_) => false,
            };
            if !cause.as_ref().is_some_and(says_less) {
                cause = Some(error.clone());
            }
            if !error.is_retriable() {
                return Err(Failure { error, repeated });
            }
            repeated |= error.is_ambiguous();
            let pause = match self.learn(&call.target, &error) {
                Lesson::Redirected if redirects < MAX_REDIRECTS => {
                    redirects += 1;
                    Duration::ZERO
                }
                _ => {
                    redirects = 0;
                    backoff.next(error.retry_after())
                }
            };
            let resume = Instant::now() + pause;
            if resume >= deadline {
                let last = cause.map(Box::new);
                let error = Error::DeadlineExceeded { operation: call.operation, after, last };
                return Err(Failure { error, repeated });
            }
            if !pause.is_zero() {
                sleep_until(resume).await;
                if let Target::Leader { topic, partition } = &call.target
                    && self.inner.metadata.leader(topic, *partition).is_none()
                {
                    // Without news the next attempt goes where the old metadata says, or to any broker.
                    let _ = timeout_at(deadline, self.refresh(topic)).await;
                }
            }
        }
    }

    async fn attempt(&self, call: &Call, deadline: Instant) -> Result<(Response, Arc<str>)> {
        let give_up = deadline.min(Instant::now() + self.call_timeout());
        let exchange = async {
            let (connection, flags) = self.route(&call.target, Purpose::Requests).await?;
            let result = self.exchange(&connection, flags, call, give_up).await;
            result.map(|response| (response, connection.address().clone()))
        };
        match timeout_at(give_up, exchange).await {
            Ok(result) => result,
            Err(_) => {
                // A broker that takes connections and says nothing must not be the first choice again.
                self.inner.preferred.fetch_add(1, Ordering::Relaxed);
                Err(Error::DeadlineExceeded {
                    operation: call.operation.clone(),
                    after: self.call_timeout(),
                    last: None,
                })
            }
        }
    }

    async fn exchange(&self, connection: &Connection, flags: Flags, call: &Call, until: Instant) -> Result<Response> {
        connection.ready().await;
        let sent_at = Instant::now();
        let reply = match timeout_at(until, connection.submit(&call.request, flags)).await {
            Ok(reply) => reply?,
            Err(_) => {
                // If the broker answers others, it is only this request that hangs.
                if connection.heard_at() < sent_at {
                    connection.close("no answer in time");
                }
                return Err(Error::lost(connection.address(), "no answer in time"));
            }
        };
        reply.result.and_then(partition_error).map_err(|reply| Error::Broker {
            operation: call.operation.clone(),
            address: connection.address().clone(),
            reply: Box::new(reply),
        })
    }

    /// A connection to the broker that a request should go to, and the flags to send it with.
    pub(crate) async fn route(&self, target: &Target, purpose: Purpose) -> Result<(Connection, Flags)> {
        if let Target::Leader { topic, partition } = target
            && let Some(address) = self.inner.metadata.leader(topic, *partition)
            && self.inner.pool.is_reachable(&address, purpose)
        {
            return match self.inner.pool.get(&address, purpose).await {
                Ok(connection) => Ok((connection, Flags::NO_FORWARD)),
                // The leader's address may be one that only its peers can reach.
                Err(_) => Ok((self.any(purpose, None).await?, Flags::NONE)),
            };
        }
        Ok((self.any(purpose, None).await?, Flags::NONE))
    }

    /// A connection to a broker by its address.
    pub(crate) async fn connection(&self, address: &Arc<str>, purpose: Purpose) -> Result<Connection> {
        self.inner.pool.get(address, purpose).await
    }

    /// Whether a broker may be tried: no attempt to connect to it has failed just now.
    pub(crate) fn is_reachable(&self, address: &Arc<str>, purpose: Purpose) -> bool {
        self.inner.pool.is_reachable(address, purpose)
    }

    /// A connection to the broker at the start of the list that can be reached; the list starts at the one that
    /// worked last. One broker may be left out. A broker, or a name server, that does not answer is not waited for: the next
    /// one is tried beside it (RFC 8305, section 5).
    async fn any(&self, purpose: Purpose, except: Option<&Arc<str>>) -> Result<Connection> {
        let mut candidates = self.addresses();
        candidates.retain(|candidate| Some(candidate) != except);
        let start = self.inner.preferred.load(Ordering::Relaxed);
        let order = (0..candidates.len()).map(|step| start.wrapping_add(step) % candidates.len());
        let mut attempts = JoinSet::new();
        let mut failure: Option<Error> = None;
        let mut order = order.peekable();
        // A broker of the right cluster that is down may come back; and that nobody listens at one address says less than how
        // another one failed.
        let says = |error: &Error| (error.is_retriable(), !error.is_refusal());
        while order.peek().is_some() || !attempts.is_empty() {
            if let Some(at) = order.next() {
                let address = candidates[at].clone();
                if let Some(connection) = self.inner.pool.open(&address, purpose) {
                    self.inner.preferred.store(at, Ordering::Relaxed);
                    return Ok(connection);
                }
                let client = self.clone();
                attempts.spawn(async move { (at, client.inner.pool.get(&address, purpose).await) });
            }
            let patience = if order.peek().is_some() { NEXT_ATTEMPT } else { Duration::MAX };
            let Ok(Some(ended)) = timeout(patience, attempts.join_next()).await else { continue };
            match ended {
                Ok((at, Ok(connection))) => {
                    self.inner.preferred.store(at, Ordering::Relaxed);
                    // That one cannot be reached is worth knowing.
                    attempts.detach_all();
                    return Ok(connection);
                }
                Ok((_, Err(error))) if failure.as_ref().is_none_or(|known| says(&error) > says(known)) => {
                    failure = Some(error);
                }
                _ => {}
            }
        }
        Err(failure.unwrap_or(Error::Closed))
    }

    /// All addresses known: those given, then those that brokers told.
    pub(crate) fn addresses(&self) -> Vec<Arc<str>> {
        let mut addresses = self.inner.bootstrap.clone();
        let told = self.inner.metadata.brokers();
        addresses.extend(told.into_iter().filter(|address| !self.inner.bootstrap.contains(address)));
        addresses
    }

    /// Remembers what a failure says about who leads the target, and steps away from a broker that cannot serve.
    pub(crate) fn learn(&self, target: &Target, error: &Error) -> Lesson {
        let address = match error {
            Error::Broker { address, reply, .. } => {
                if let (Some(hint), Target::Leader { topic, partition }) = (&reply.leader, target)
                    && self.inner.metadata.redirect(topic, *partition, hint)
                {
                    return Lesson::Redirected;
                }
                match reply.code {
                    // The right broker, at a bad moment.
                    ErrorCode::Overloaded | ErrorCode::StorageFull | ErrorCode::Timeout => return Lesson::Nothing,
                    _ => address,
                }
            }
            Error::Connect { address, .. } | Error::ConnectionLost { address, .. } => address,
            _ => return Lesson::Nothing,
        };
        if let Target::Leader { topic, partition } = target {
            self.inner.metadata.distrust(topic, *partition, address);
        }
        self.inner.preferred.fetch_add(1, Ordering::Relaxed);
        Lesson::Nothing
    }

    /// Asks a broker who leads what. Concurrent calls share one request and its outcome, and requests keep a distance.
    pub(crate) async fn refresh(&self, topic: &str) -> Result<()> {
        let metadata = &self.inner.metadata;
        let wish = metadata.wish(topic);
        let mut pace = metadata.refreshing.lock().await;
        if let Some(answer) = wish.answer() {
            return answer;
        }
        if let (_, Some(refreshed_at)) = metadata.age() {
            sleep_until(refreshed_at + pace.distance(refreshed_at.elapsed())).await;
        }
        let (wishes, topics) = metadata.ask(wish);
        let request = Request::Metadata(MetadataRequest { topics: Some(topics) });
        let call = Call::new(Operation::on_topic("metadata", topic), request);
        let deadline = Instant::now() + self.call_timeout();
        let result = match self.attempt(&call, deadline).await {
            Ok((Response::Metadata(reply), _)) => {
                metadata.update(&reply);
                Ok(())
            }
            Ok((_, address)) => Err(unexpected(&address, &call.operation)),
            Err(error) => {
                self.learn(&Target::Any, &error);
                Err(error)
            }
        };
        wishes.iter().for_each(|wish| wish.fulfil(&result));
        result
    }

    /// Whether another broker than `address`, which has been silent for a while, leads the partition by now. Asks one
    /// of the other brokers; without an answer, nothing is known to have moved.
    pub(crate) async fn has_moved(self, topic: Arc<str>, partition: u32, address: Arc<str>) -> bool {
        let metadata = &self.inner.metadata;
        let (seen, _) = metadata.age();
        let _turn = metadata.refreshing.lock().await;
        if metadata.age().0 == seen {
            let ask = async {
                let connection = self.any(Purpose::Requests, Some(&address)).await?;
                let request = Request::Metadata(MetadataRequest { topics: Some(metadata.topics()) });
                connection.submit(&request, Flags::NONE).await
            };
            match timeout(SILENCE, ask).await {
                Ok(Ok(Reply { result: Ok(Response::Metadata(reply)) })) => metadata.update(&reply),
                _ => {
                    self.inner.preferred.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        metadata.leader(&topic, partition).is_some_and(|leader| leader != address)
    }

    /// What is needed to use a topic. Asks the cluster if it is not known yet.
    pub(crate) async fn topic(&self, name: &str) -> Result<TopicInfo> {
        let after = self.inner.request_timeout;
        let deadline = Instant::now() + after;
        let operation = || Operation::on_topic("metadata", name);
        let mut backoff = Backoff::new();
        loop {
            if let Some(topic) = self.inner.metadata.topic(name) {
                return Ok(topic);
            }
            let last = match self.refresh(name).await {
                Ok(()) => match self.inner.metadata.topic(name) {
                    Some(topic) => return Ok(topic),
                    // Which error it is, the description of the topic says.
                    None => self.describe_topic(name).await.err(),
                },
                Err(error) => Some(error),
            };
            match last {
                Some(error) if !error.is_retriable() => return Err(error),
                last => {
                    let resume = Instant::now() + backoff.next(Duration::ZERO);
                    if resume >= deadline {
                        let last = last.map(Box::new);
                        return Err(Error::DeadlineExceeded { operation: operation(), after, last });
                    }
                    sleep_until(resume).await;
                }
            }
        }
    }
}

/// What a failure taught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lesson {
    /// Another leader, which was not tried yet.
    Redirected,
    Nothing,
}

/// Makes the error of the only partition asked about the error of the request.
fn partition_error(response: Response) -> std::result::Result<Response, ErrorReply> {
    match response {
        Response::ListOffsets(mut found) if found.len() == 1 && found[0].error != ErrorCode::None => {
            Err(ErrorReply::new(found[0].error, std::mem::take(&mut found[0].message)))
        }
        response => Ok(response),
    }
}

/// The error for a response of the wrong kind.
pub(crate) fn unexpected(address: &Arc<str>, operation: &Operation) -> Error {
    Error::protocol(address, format_args!("answered another question than {operation}"))
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("brokers", &self.addresses()).finish()
    }
}
