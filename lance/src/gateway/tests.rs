//! The gateway on real sockets, with the test in the broker's place.

use super::connection::GREETING_TIME;
use super::*;
use bytes::BytesMut;
use lnc_protocol::message::{
    CreateTopicRequest, DescribeTopicRequest, FetchPartition, FetchRequest, FetchedPartition, HelloRequest,
    HelloResponse, TopicOptions,
};
use lnc_protocol::{BatchBuilder, Codec, Reply};
use lnc_protocol::{PROTOCOL_VERSION, Request, Response, decode_reply, encode_reply, encode_request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::LocalSet;
use tokio::time::timeout;

const OTHER: NodeId = NodeId(2);
const MIB: u32 = 1 << 20;
/// Of each kind of memory.
const BUDGET: usize = 64 << 20;
const IDLE: Duration = Duration::from_secs(60);
/// Longest time for anything to happen, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway, and one client that has said hello.
struct Bench {
    gateway: Rc<Gateway>,
    client: TcpStream,
    received: BytesMut,
    sent: u64,
    asked: VecDeque<Caller>,
}

impl Bench {
    async fn new(max_frame_bytes: usize, other: &str) -> Self {
        Self::with_traces(max_frame_bytes, other, None).await
    }

    async fn with_traces(max_frame_bytes: usize, other: &str, traces: Option<Traces>) -> Self {
        let config = GatewayConfig {
            max_frame_bytes,
            max_batch_bytes: MIB as usize,
            max_connections: 1000,
            request_bytes: BUDGET,
            reply_bytes: BUDGET,
            idle_timeout: IDLE,
            listens: foreign::Places::default(),
            nodes: [(OTHER.node(), other.to_owned())].into(),
        };
        let gateway = Gateway::new(config, Rc::new(Notify::new()), Metrics::new(), traces).unwrap();
        gateway.start_serving();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        spawn_local(gateway.clone().accept(listener));
        let mut bench = Self { gateway, client, received: BytesMut::new(), sent: 0, asked: VecDeque::new() };
        bench.send(&[Request::Hello(HelloRequest {
            min_version: PROTOCOL_VERSION,
            max_version: PROTOCOL_VERSION,
            features: trace::FEATURE,
            ..HelloRequest::default()
        })]);
        assert_eq!(bench.served().await, [0]);
        bench.answer(0, Response::Hello(HelloResponse::default()));
        bench.next_frame().await;
        bench
    }

    /// Sends these requests in one piece. They are numbered from 0, over the client's life.
    fn send(&mut self, requests: &[Request]) {
        let mut out = BytesMut::new();
        for request in requests {
            encode_request(&mut out, Flags::NONE, self.sent, request);
            self.sent += 1;
        }
        assert_eq!(self.client.try_write(&out).unwrap(), out.len());
    }

    /// Sends so many requests with this body in one piece, each in a trace.
    fn send_traced(&mut self, count: usize, opcode: Opcode, context: TraceContext, body: &[u8]) {
        let mut out = BytesMut::new();
        for _ in 0..count {
            frame::encode(&mut out, opcode, Flags::TRACED, self.sent, |out| {
                context.encode(out);
                out.extend_from_slice(body);
            });
            self.sent += 1;
        }
        assert_eq!(self.client.try_write(&out).unwrap(), out.len());
    }

    /// The numbers of the requests that the next turn gets.
    async fn served(&mut self) -> Vec<u64> {
        timeout(PATIENCE, self.gateway.turn.notified()).await.expect("a turn is asked for");
        let mut inbox = VecDeque::new();
        self.gateway.take_inbox(&mut inbox);
        let callers: Vec<Caller> = inbox.into_iter().map(|incoming| incoming.caller).collect();
        self.asked.extend(&callers);
        callers.iter().map(|caller| caller.correlation).collect()
    }

    /// The caller of a request that the test has got.
    fn caller(&self, number: u64) -> Caller {
        *self.asked.iter().find(|caller| caller.correlation == number).unwrap()
    }

    fn answer(&self, number: u64, response: Response) {
        let (caller, opcode) = (self.caller(number), response.opcode());
        self.gateway.dispatch(&mut vec![Output::Reply { caller, opcode, reply: response.into() }]);
    }

    /// Answers a fetch with this many bytes.
    fn answer_fetch(&self, number: u64, bytes: usize) {
        let found = FetchedPartition { records: Bytes::from(vec![0; bytes]).into(), ..FetchedPartition::default() };
        self.answer(number, Response::Fetch(vec![found]));
    }

    /// Passes a request on to the other node.
    fn forward(&self, number: u64) {
        let (caller, opcode) = (self.caller(number), Opcode::InitProducer);
        self.gateway.dispatch(&mut vec![Output::Forward {
            ticket: number,
            caller,
            opcode,
            body: Bytes::new(),
            to: OTHER,
        }]);
    }

    async fn next_frame(&mut self) -> Frame {
        loop {
            if let Some(frame) = frame::decode(&mut self.received, 1 << 30).unwrap() {
                return frame;
            }
            let read = timeout(PATIENCE, self.client.read_buf(&mut self.received)).await.expect("a reply comes");
            assert!(read.unwrap() > 0, "the connection is closed");
        }
    }

    /// Waits until the gateway cannot get rid of a reply.
    async fn wait_until_writer_is_stuck(&self) {
        let connection = self.gateway.connections.borrow().values().next().unwrap().clone();
        let stuck = async {
            let mut before = 0;
            let unwritten = || connection.unwritten();
            while unwritten() == 0 || unwritten() != before {
                before = unwritten();
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, stuck).await.expect("the reply is longer than sockets hold");
    }
}

fn fetch(max_bytes: u32) -> Request {
    Request::Fetch(FetchRequest { max_wait_ms: 60_000, min_bytes: 1, max_bytes, partitions: Vec::new() })
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn fetches_go_ahead_as_far_as_there_is_room_for_their_replies() {
    run(async {
        let mut bench = Bench::new(8 << 20, "").await;
        let fetches = vec![fetch(8 * MIB); 6];
        bench.send(&[&fetches[..], &[Request::Ping]].concat());
        assert_eq!(bench.served().await, [1, 2, 3, 4]);
        bench.answer_fetch(3, 10);
        assert_eq!(bench.served().await, [5]);
        bench.answer_fetch(1, 10);
        assert_eq!(bench.served().await, [6, 7], "in their order");
    });
}

#[test]
fn a_fetch_counts_at_least_the_batch_that_it_gets_in_any_case() {
    run(async {
        let mut bench = Bench::new(8 << 20, "").await;
        bench.send(&vec![fetch(1); 40]);
        assert_eq!(bench.served().await, Vec::from_iter(1..=32));
        bench.answer_fetch(7, 0);
        assert_eq!(bench.served().await, [33]);
    });
}

/// Each of these requests has a few bytes, and its reply a megabyte.
#[test]
fn replies_that_grow_with_the_cluster_are_reckoned_with() {
    run(async {
        let describe = || Request::DescribeTopic(DescribeTopicRequest { name: "t".into() });
        let create = || {
            let options = TopicOptions::default();
            Request::CreateTopic(CreateTopicRequest { name: "t".into(), partitions: 9, options, timeout_ms: 1000 })
        };
        let requests: [&dyn Fn() -> Request; 4] =
            [&create, &describe, &|| Request::ListTopics, &|| Request::ClusterInfo];
        for request in requests {
            let mut bench = Bench::new(8 << 20, "").await;
            let size = MIB as usize;
            bench.gateway.set_reply_sizes(ReplySizes { metadata: size, topics: size, topic: size, cluster: size });
            bench.send(&std::iter::repeat_with(request).take(40).collect::<Vec<_>>());
            let served = bench.served().await.len();
            assert!(served <= BUDGET / size / 2, "{served} are served, whose replies have a MiB each");
        }
    });
}

#[test]
fn fetches_that_wait_hold_up_nothing_else() {
    run(async {
        let mut bench = Bench::new(8 << 20, "").await;
        let fetches = vec![fetch(8 * MIB); 4];
        bench.send(&[&fetches[..], &[Request::Ping, Request::InitProducer]].concat());
        assert_eq!(bench.served().await, [1, 2, 3, 4, 5, 6]);
    });
}

#[test]
fn a_fetch_for_which_there_is_never_room_goes_alone() {
    run(async {
        let mut bench = Bench::new(1 << 30, "").await;
        bench.send(&[fetch(u32::MAX), Request::Ping, fetch(1)]);
        assert_eq!(bench.served().await, [1, 2]);
        bench.answer_fetch(1, 10);
        assert_eq!(bench.served().await, [3]);
    });
}

/// An ordinary end says no more than that nothing more will be sent.
#[test]
fn nobody_reads_on_for_a_client_that_has_closed_and_what_it_wrote_is_answered() {
    run(async {
        let mut bench = Bench::new(64 << 20, "").await;
        let produce = Request::Produce(ProduceRequest {
            acks: lnc_protocol::message::Acks::Quorum,
            timeout_ms: 60_000,
            topic: "t".to_owned(),
            topic_id: 0,
            partition: 0,
            batch: Bytes::from_static(b"checked by the broker"),
        });
        bench.send(&[fetch(MIB), produce]);
        assert_eq!(bench.served().await, [1, 2]);
        bench.client.shutdown().await.unwrap();
        sleep(LAST_READS + Duration::from_millis(300)).await;
        assert_eq!(bench.gateway.requests_under_way(), 2, "what is written has an outcome");
        let caller = bench.caller(2);
        let error = ErrorReply::new(ErrorCode::Timeout, "none");
        bench.gateway.dispatch(&mut vec![Output::Reply {
            caller,
            opcode: Opcode::Produce,
            reply: Reply { result: Err(error) },
        }]);
        let gone = async {
            while !bench.gateway.connections.borrow().is_empty() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, gone).await.expect("the fetch is waited for no more");
    });
}

#[test]
fn a_client_that_does_not_read_is_cut_off() {
    run(async {
        let mut bench = Bench::new(64 << 20, "").await;
        bench.send(&[fetch(64 * MIB), Request::Ping]);
        assert_eq!(bench.served().await, [1, 2]);
        bench.answer_fetch(1, 32 << 20);
        bench.wait_until_writer_is_stuck().await;
        bench.gateway.expire(Instant::now());
        bench.gateway.expire(Instant::now() + IDLE + PATIENCE);
        let gone = async {
            while !bench.gateway.connections.borrow().is_empty() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, gone).await.expect("the connection ends");
        assert_eq!(bench.gateway.requests_under_way(), 0, "nobody waits for the ping any more");
    });
}

#[test]
fn a_client_that_is_slow_gets_its_reply() {
    run(async {
        let mut bench = Bench::new(64 << 20, "").await;
        bench.send(&[fetch(64 * MIB)]);
        assert_eq!(bench.served().await, [1]);
        bench.answer_fetch(1, 32 << 20);
        bench.wait_until_writer_is_stuck().await;
        assert!(!bench.gateway.is_flushed(), "a part has not been handed to the kernel");
        bench.gateway.expire(Instant::now());
        assert!(bench.next_frame().await.body.len() > 32 << 20);
        assert!(bench.gateway.is_flushed());
    });
}

#[test]
fn a_connection_to_a_node_that_does_not_answer_is_given_up() {
    run(async {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut bench = Bench::new(8 << 20, &silent.local_addr().unwrap().to_string()).await;
        bench.send(&[Request::InitProducer, Request::InitProducer]);
        assert_eq!(bench.served().await, [1, 2]);
        bench.forward(1);
        let (mut first, _) = silent.accept().await.unwrap();
        bench.gateway.expire(Instant::now());
        assert!(bench.gateway.take_passages().is_empty(), "there is time left");
        let asked = Instant::now() + forward::SILENCE + PATIENCE;
        bench.gateway.expire(asked);
        bench.gateway.expire(asked + forward::ANSWER_TIMEOUT + PATIENCE);
        timeout(PATIENCE, bench.gateway.turn.notified()).await.expect("a turn is asked for");
        let passages = bench.gateway.take_passages();
        assert!(matches!(passages[..], [(1, Passage::Broken)]), "it may have got the request: {passages:?}");
        let mut heard = Vec::new();
        timeout(PATIENCE, first.read_to_end(&mut heard)).await.expect("the connection is given up").unwrap();
        bench.forward(2);
        timeout(PATIENCE, silent.accept()).await.expect("the next request tries a new one").unwrap();
    });
}

/// One client says how long its request may wait; those of others travel on the same connection.
#[test]
fn a_request_may_wait_at_another_node_for_long_if_that_is_there() {
    run(async {
        let busy = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut bench = Bench::new(8 << 20, &busy.local_addr().unwrap().to_string()).await;
        bench.send(&[Request::InitProducer]);
        assert_eq!(bench.served().await, [1]);
        bench.forward(1);
        let (mut stream, _) = busy.accept().await.unwrap();
        let (mut heard, mut now) = (BytesMut::new(), Instant::now());
        for _ in 0..3 {
            now += forward::SILENCE + forward::ANSWER_TIMEOUT + PATIENCE;
            bench.gateway.expire(now);
            let ping = loop {
                match frame::decode(&mut heard, 1 << 20).unwrap() {
                    Some(frame) if frame.header.opcode == u8::from(Opcode::Ping) => break frame,
                    Some(_) => {}
                    None => {
                        let read = timeout(PATIENCE, stream.read_buf(&mut heard)).await.expect("it is asked").unwrap();
                        assert!(read > 0, "the connection is given up");
                    }
                }
            };
            let mut out = BytesMut::new();
            encode_reply(&mut out, Opcode::Ping, ping.header.correlation, &Response::Pong.into());
            stream.write_all(&out).await.unwrap();
            let link = bench.gateway.forwards.borrow().values().next().unwrap().clone();
            timeout(PATIENCE, async {
                while link.asked.get().is_some() {
                    sleep(Duration::from_millis(1)).await;
                }
            })
            .await
            .expect("its answer arrives");
        }
        assert!(bench.gateway.take_passages().is_empty(), "it still waits");
    });
}

#[test]
fn what_was_not_sent_is_told_from_what_may_have_been() {
    run(async {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut bench = Bench::new(8 << 20, &gone.local_addr().unwrap().to_string()).await;
        drop(gone);
        bench.send(&[Request::InitProducer]);
        assert_eq!(bench.served().await, [1]);
        bench.forward(1);
        timeout(PATIENCE, bench.gateway.turn.notified()).await.expect("a turn is asked for");
        let passages = bench.gateway.take_passages();
        assert!(matches!(passages[..], [(1, Passage::NotSent)]), "nobody listens: {passages:?}");
    });
}

const CONTEXT: TraceContext = TraceContext { trace_id: 77, span_id: 5, sampled: true };

/// The next frame from a node that passes requests on.
async fn heard(stream: &mut TcpStream, received: &mut BytesMut) -> Frame {
    loop {
        if let Some(frame) = frame::decode(received, 1 << 20).unwrap() {
            return frame;
        }
        assert!(timeout(PATIENCE, stream.read_buf(received)).await.expect("a request comes").unwrap() > 0);
    }
}

/// What another node hears of recorded requests that are passed on, once it has said how long frames may be and which
/// features it has: the flags and the body of the first one, sent before it has said anything, and of the second.
async fn passed_on(features: u64, max_frame_bytes: u32) -> [(Flags, Bytes); 2] {
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = other.local_addr().unwrap().to_string();
    let traces = Traces::new(1, 0.0, 7, Box::new(|| 0), Rc::new(|_| {}));
    let mut bench = Bench::with_traces(1 << 20, &address, Some(traces)).await;
    bench.send_traced(2, Opcode::Produce, CONTEXT, b"body");
    assert_eq!(bench.served().await, [1, 2]);
    assert!(bench.caller(1).flags.contains(Flags::TRACED));
    let pass_on = |bench: &Bench, number| {
        let (caller, opcode) = (bench.caller(number), Opcode::Produce);
        let body = Bytes::from_static(b"body");
        bench.gateway.dispatch(&mut vec![Output::Forward { ticket: number, caller, opcode, body, to: OTHER }]);
    };
    pass_on(&bench, 1);
    let (mut stream, _) = other.accept().await.unwrap();
    let mut received = BytesMut::new();
    let hello = heard(&mut stream, &mut received).await;
    assert!(matches!(Request::decode(Opcode::Hello, hello.body), Ok(Request::Hello(hello)) if hello.features == 1));
    let first = heard(&mut stream, &mut received).await;
    let greeting = HelloResponse { features, max_frame_bytes, ..HelloResponse::default() };
    let mut out = BytesMut::new();
    encode_reply(&mut out, Opcode::Hello, hello.header.correlation, &Response::Hello(greeting).into());
    let refusal = Reply { result: Err(ErrorReply::new(ErrorCode::NotReady, "")) };
    encode_reply(&mut out, Opcode::Produce, first.header.correlation, &refusal);
    stream.write_all(&out).await.unwrap();
    timeout(PATIENCE, bench.gateway.turn.notified()).await.expect("a turn is asked for");
    let answered = bench.gateway.take_passages();
    assert!(matches!(answered[..], [(1, Passage::Answered(_))]), "{answered:?}");
    pass_on(&bench, 2);
    let second = heard(&mut stream, &mut received).await;
    [first, second].map(|frame| (frame.header.flags, frame.body))
}

#[test]
fn a_context_is_passed_on_to_nodes_that_know_it_and_have_room() {
    run(async {
        let plain = (Flags::FORWARDED, Bytes::from_static(b"body"));
        let [first, (flags, mut body)] = passed_on(trace::FEATURE, 1 << 20).await;
        assert_eq!(first, plain, "the other node has not said yet that it knows contexts");
        assert_eq!(flags, Flags::FORWARDED | Flags::TRACED);
        let context = TraceContext::take(&mut body).unwrap().unwrap();
        assert_eq!((context.trace_id, context.sampled, &body[..]), (CONTEXT.trace_id, true, &b"body"[..]));
        assert_ne!(context.span_id, CONTEXT.span_id, "the wait is a span of its own");
        assert_eq!(passed_on(0, 1 << 20).await[1], plain, "as version 0.1.0 answers");
        assert_eq!(passed_on(trace::FEATURE, 28).await[1], plain, "four bytes and the context are 29");
        assert_eq!(passed_on(trace::FEATURE, 29).await[1].0, flags);
    });
}

#[test]
fn contexts_of_other_requests_are_read_past_and_short_ones_refused() {
    run(async {
        let mut bench = Bench::new(8 << 20, "").await;
        let mut wait = BytesMut::new();
        fetch(8 * MIB).encode_body(&mut wait);
        bench.send_traced(5, Opcode::Fetch, CONTEXT, &wait);
        assert_eq!(bench.served().await, [1, 2, 3, 4], "their room is reckoned behind the context");
        assert!(!bench.caller(1).flags.contains(Flags::TRACED), "nothing is recorded here");
        bench.answer_fetch(1, 10);
        assert_eq!(bench.served().await, [5]);
        bench.next_frame().await;
        let mut short = BytesMut::new();
        frame::encode(&mut short, Opcode::Ping, Flags::TRACED, 9, |out| out.extend_from_slice(&[1; 24]));
        assert_eq!(bench.client.try_write(&short).unwrap(), short.len());
        let answer = bench.next_frame().await;
        let error = decode_reply(Opcode::Ping, answer.body).unwrap().result.unwrap_err();
        assert_eq!((answer.header.correlation, error.code), (9, ErrorCode::InvalidRequest), "{error}");
    });
}

#[test]
fn a_context_is_refused_where_nobody_asked_for_contexts() {
    run(async {
        let bench = Bench::new(8 << 20, "").await;
        let mut crowd = Crowd::new(&bench, 1, true).await;
        let mut traced = BytesMut::new();
        frame::encode(&mut traced, Opcode::Ping, Flags::TRACED, 9, |out| CONTEXT.encode(out));
        let client = &mut crowd.clients[0];
        client.write_all(&traced).await.unwrap();
        let mut received = BytesMut::new();
        while heard(client, &mut received).await.header.correlation != 9 {}
        let mut plain = BytesMut::new();
        encode_request(&mut plain, Flags::NONE, 10, &Request::Ping);
        client.write_all(&plain).await.unwrap();
        while bench.gateway.inbox.borrow().is_empty() {
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(bench.gateway.inbox.borrow()[0].caller.correlation, 10, "the connection goes on");
    });
}

/// What a client hears that speaks something else.
#[test]
fn whoever_speaks_something_else_is_told_what_it_looks_like() {
    run(async {
        let bench = Bench::new(8 << 20, "").await;
        let mut crowd = Crowd::new(&bench, 2, false).await;
        crowd.clients[0].write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut heard = String::new();
        timeout(PATIENCE, crowd.clients[0].read_to_string(&mut heard)).await.expect("it is closed").unwrap();
        assert!(heard.starts_with("HTTP/1.1 400 ") && heard.contains("looks like HTTP"), "{heard}");
        crowd.clients[1].write_all(&[0, 0, 0, 0x23, 0, 18, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0]).await.unwrap();
        let mut bytes = Vec::new();
        timeout(PATIENCE, crowd.clients[1].read_to_end(&mut bytes)).await.expect("it is closed").unwrap();
        assert!(String::from_utf8_lossy(&bytes).contains("a client of Kafka"));
    });
}

/// More clients of a gateway, with hello said or not.
struct Crowd {
    address: std::net::SocketAddr,
    clients: Vec<TcpStream>,
}

impl Crowd {
    async fn new(bench: &Bench, count: usize, greeted: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        spawn_local(bench.gateway.clone().accept(listener));
        let mut crowd = Self { address, clients: Vec::new() };
        for _ in 0..count {
            crowd.join(bench, greeted).await;
        }
        crowd
    }

    async fn join(&mut self, bench: &Bench, greeted: bool) {
        let mut client = TcpStream::connect(self.address).await.unwrap();
        if greeted {
            let mut out = BytesMut::new();
            encode_request(&mut out, Flags::NONE, 0, &Request::Hello(HelloRequest::default()));
            client.write_all(&out).await.unwrap();
            while !bench.gateway.connections.borrow().values().any(|connection| connection.requests.get() > 0) {
                sleep(Duration::from_millis(1)).await;
            }
            answer_all(bench, Response::Hello(HelloResponse::default()));
        }
        self.clients.push(client);
    }
}

/// Answers whatever has come with this.
fn answer_all(bench: &Bench, response: Response) {
    let mut inbox = VecDeque::new();
    bench.gateway.take_inbox(&mut inbox);
    let reply = |Incoming { caller, opcode, .. }| Output::Reply { caller, opcode, reply: response.clone().into() };
    bench.gateway.dispatch(&mut inbox.into_iter().map(reply).collect());
}

/// The beginning of a frame with a body of so many bytes: the header and `part` bytes.
fn unfinished(opcode: Opcode, body: usize, part: usize) -> BytesMut {
    let mut out = BytesMut::new();
    frame::encode(&mut out, opcode, Flags::NONE, 1, |out| out.resize(out.len() + body, 0));
    out.truncate(frame::HEADER_LEN + part);
    out
}

/// Writes as far as the other end takes it.
async fn offer(client: &TcpStream, mut bytes: &[u8]) {
    while !bytes.is_empty() && timeout(Duration::from_millis(50), client.writable()).await.is_ok() {
        if let Ok(written) = client.try_write(bytes) {
            bytes = &bytes[written..];
        }
    }
}

fn memory(gateway: &Gateway) -> usize {
    gateway.requests.used() + gateway.chunks.used()
}

#[test]
fn frames_that_never_end_hold_no_more_than_the_budget_and_not_for_long() {
    run(async {
        let mut bench = Bench::new(8 << 20, "").await;
        let crowd = Crowd::new(&bench, 30, true).await;
        for client in &crowd.clients {
            offer(client, &unfinished(Opcode::Produce, 7 << 20, 6 << 20)).await;
        }
        assert!(memory(&bench.gateway) <= BUDGET, "{}", memory(&bench.gateway));
        assert!(bench.gateway.requests.is_short());
        // Somebody with little is served all the same.
        bench.send(&[Request::Ping]);
        while !bench.served().await.contains(&1) {}
        // Those who have begun and do not go on make room for those who wait.
        let before = bench.gateway.connections.borrow().len();
        bench.gateway.expire(Instant::now() + Duration::from_secs(1000));
        let ended = async {
            while bench.gateway.connections.borrow().len() == before {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, ended).await.expect("who is slow to send is cut off");
        assert!(memory(&bench.gateway) <= BUDGET);
    });
}

/// Who holds nothing gets what it needs, and many who hold nothing would get more than there is.
#[test]
fn one_long_reply_for_each_of_many_is_no_more_than_the_budget() {
    const CLIENTS: usize = 40;
    run(async {
        let bench = Bench::new(8 << 20, "").await;
        let long = 4 << 20;
        bench.gateway.set_reply_sizes(ReplySizes { topics: long, ..ReplySizes::default() });
        let crowd = Crowd::new(&bench, CLIENTS, true).await;
        let mut list = BytesMut::new();
        encode_request(&mut list, Flags::NONE, 1, &Request::ListTopics);
        for client in &crowd.clients {
            offer(client, &list).await;
        }
        let mut most = 0;
        let all = async {
            let (mut came, mut answered) = (VecDeque::new(), 0);
            while answered < CLIENTS {
                bench.gateway.take_inbox(&mut came);
                most = bench.gateway.replies.used().max(most);
                // As many as ever come at once, so that all of them are expected before the first one is answered.
                if came.len() >= (CLIENTS - answered).min(BUDGET / IN_ANY_CASE * (IN_ANY_CASE - 1) / long) {
                    answered += came.len();
                    let response = Response::ListTopics(Vec::new());
                    let reply = |Incoming { caller, opcode, .. }| Output::Reply {
                        caller,
                        opcode,
                        reply: response.clone().into(),
                    };
                    sleep(Duration::from_millis(50)).await;
                    most = bench.gateway.replies.used().max(most);
                    bench.gateway.dispatch(&mut came.drain(..).map(reply).collect());
                }
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, all).await.expect("each has its turn");
        assert!(most <= BUDGET, "{most} bytes of replies are expected at once, of {BUDGET}");
    });
}

#[test]
fn before_the_greeting_a_frame_is_short() {
    run(async {
        let bench = Bench::new(8 << 20, "").await;
        let mut crowd = Crowd::new(&bench, 1, false).await;
        let client = &mut crowd.clients[0];
        offer(client, &unfinished(Opcode::Hello, MAX_GREETING + 1, 0)).await;
        let mut received = BytesMut::new();
        let answer = heard(client, &mut received).await;
        let error = decode_reply(Opcode::Hello, answer.body).unwrap().result.unwrap_err();
        assert!(error.message.contains("65536"), "{error}");
    });
}

#[test]
fn who_does_not_greet_does_not_keep_its_place() {
    run(async {
        let bench = Bench::new(8 << 20, "").await;
        let mut crowd = Crowd::new(&bench, 1, true).await;
        let mut silent = TcpStream::connect(crowd.address).await.unwrap();
        let mut drips = TcpStream::connect(crowd.address).await.unwrap();
        drips.write_all(b"PI").await.unwrap();
        let open = || bench.gateway.connections.borrow().len();
        let all = async {
            while open() < 4 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, all).await.expect("the client of the bench, one that greets, and two that do not");
        bench.gateway.expire(Instant::now());
        bench.gateway.expire(Instant::now() + GREETING_TIME + Duration::from_millis(1));
        for stranger in [&mut silent, &mut drips] {
            let end = timeout(PATIENCE, stranger.read(&mut [0; 64])).await.expect("it is cut off");
            assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        }
        let mut ping = BytesMut::new();
        encode_request(&mut ping, Flags::NONE, 1, &Request::Ping);
        crowd.clients[0].write_all(&ping).await.unwrap();
        let heard = async {
            while open() > 2 || !bench.gateway.connections.borrow().values().any(|c| c.requests.get() > 0) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, heard).await.expect("who has greeted is heard, however long ago");
    });
}

#[test]
fn a_silent_connection_holds_nothing() {
    run(async {
        let bench = Bench::new(8 << 20, "").await;
        let _crowd = Crowd::new(&bench, 200, true).await;
        let idle = async {
            while memory(&bench.gateway) > 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, idle).await.expect("buffers are given back");
    });
}

#[test]
fn clients_that_ping_and_do_not_read_hold_no_more_than_the_budget() {
    run(async {
        let bench = Bench::new(8 << 20, "").await;
        let crowd = Crowd::new(&bench, 100, true).await;
        let mut pings = BytesMut::new();
        for number in 0..20_000 {
            encode_request(&mut pings, Flags::NONE, number, &Request::Ping);
        }
        let mut most = 0;
        for _ in 0..60 {
            for client in &crowd.clients {
                let _ = client.try_write(&pings);
            }
            sleep(Duration::from_millis(1)).await;
            // The answer to each is as long as those get.
            answer_all(
                &bench,
                Response::Fetch(vec![FetchedPartition { message: "x".repeat(150), ..FetchedPartition::default() }]),
            );
            most = most.max(bench.gateway.replies.used());
        }
        // What one turn answers may be beyond it, for what was taken together.
        assert!((BUDGET / 2..BUDGET + (8 << 20)).contains(&most), "{most}");
        let owed: Vec<usize> = bench.gateway.connections.borrow().values().map(|one| one.owed()).collect();
        assert!(owed.iter().all(|owed| *owed < BUDGET / 4), "{owed:?}");
    });
}

#[test]
fn who_does_not_read_makes_room_when_it_is_short() {
    run(async {
        let mut bench = Bench::new(64 << 20, "").await;
        bench.send(&[fetch(64 * MIB)]);
        assert_eq!(bench.served().await, [1]);
        bench.answer_fetch(1, 60 << 20);
        bench.wait_until_writer_is_stuck().await;
        assert!(bench.gateway.replies.is_short());
        bench.gateway.expire(Instant::now() + UNREAD + Duration::from_secs(5));
        let gone = async {
            while !bench.gateway.connections.borrow().is_empty() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, gone).await.expect("the connection ends long before it is idle");
        assert_eq!(bench.gateway.replies.used(), 0);
    });
}

#[test]
fn a_fetch_is_told_what_room_there_is() {
    run(async {
        let mut bench = Bench::new(64 << 20, "").await;
        bench.send(&[fetch(MIB), fetch(MIB)]);
        assert_eq!(bench.served().await, [1, 2]);
        let (first, second) = (bench.caller(1), bench.caller(2));
        let broker_side = BrokerSide(bench.gateway.clone());
        let all = BUDGET - BUDGET / IN_ANY_CASE;
        assert_eq!(broker_side.room(first), all);
        broker_side.keep(first, 10 << 20);
        assert_eq!(broker_side.room(second), all - (20 << 20), "what it has is taken off, and again as its share");
        broker_side.keep(first, 5 << 20);
        bench.answer_fetch(1, 0);
        bench.next_frame().await;
        assert_eq!(broker_side.room(second), all, "all was given back");
    });
}

/// A produce request whose batch has so many records; with the wrong count if it is to be refused.
fn produce(records: u32, is_right: bool) -> Request {
    let mut batch = BatchBuilder::new(Codec::None);
    for _ in 0..records {
        batch.append(0, None, Some(b"x"), &[]).unwrap();
    }
    let mut batch = BytesMut::from(&batch.build()[..]);
    if !is_right {
        let last = batch.len() - 1;
        batch[last] ^= 1;
    }
    Request::Produce(ProduceRequest {
        topic: "t".into(),
        partition: 3,
        batch: batch.freeze(),
        ..ProduceRequest::default()
    })
}

#[test]
fn batches_that_take_long_are_looked_through_elsewhere_and_keep_their_order() {
    run(async {
        let mut bench = Bench::new(8 << 20, "").await;
        bench.send(&[
            produce(10, true),
            produce(20_000, true),
            produce(10, true),
            produce(20_000, false),
            Request::Ping,
        ]);
        let mut served = Vec::new();
        while served.len() < 4 {
            served.extend(bench.served().await);
        }
        assert_eq!(served, [1, 2, 3, 5]);
        let checked = [1, 2, 3].map(|number| bench.caller(number).flags.contains(Flags::CHECKED));
        assert_eq!(checked, [false, true, false]);
        let answer = bench.next_frame().await;
        let error = decode_reply(Opcode::Produce, answer.body).unwrap().result.unwrap_err();
        assert_eq!((answer.header.correlation, error.code), (4, ErrorCode::CorruptBatch), "{error}");
        assert!(error.message.contains("topic \"t\" partition 3"), "{error}");
    });
}

#[test]
fn a_request_beside_another_goes_on_while_others_have_all() {
    run(async {
        let mut bench = Bench::new(8 << 20, "").await;
        let crowd = Crowd::new(&bench, 8, true).await;
        for client in &crowd.clients {
            offer(client, &unfinished(Opcode::Produce, 7 << 20, 6 << 20)).await;
        }
        assert!(bench.gateway.requests.is_short());
        bench.send(&[Request::InitProducer]);
        while bench.served().await != [1] {}
        bench.send(&[Request::InitProducer, Request::Ping]);
        assert_eq!(bench.served().await, [2, 3], "the first is not answered yet");
    });
}

#[test]
fn a_long_frame_counts_while_it_waits_for_its_turn() {
    run(async {
        let mut bench = Bench::new(8 << 20, "").await;
        let partition = FetchPartition { topic: "t".repeat(200), max_bytes: 1, ..FetchPartition::default() };
        let partitions = vec![partition; 1000];
        let long = Request::Fetch(FetchRequest { max_wait_ms: 60_000, min_bytes: 1, max_bytes: 8 << 20, partitions });
        let mut body = BytesMut::new();
        long.encode_body(&mut body);
        assert!(body.len() > receive::READ_CHUNK);
        let fetches = vec![fetch(8 * MIB); 4];
        bench.send(&fetches);
        assert_eq!(bench.served().await, [1, 2, 3, 4]);
        let before = memory(&bench.gateway);
        bench.send(&[long]);
        let counted = async {
            while memory(&bench.gateway) < before + ENTRIES_FACTOR * body.len() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, counted).await.expect("it is held, though it is not taken");
        bench.answer_fetch(1, 0);
        assert_eq!(bench.served().await, [5]);
    });
}
