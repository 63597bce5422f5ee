//! A line: one connection to one broker, and the produce requests under way on it.
//!
//! One task owns all of it. Each time it wakes it takes in all replies that have come, fills the room they leave with
//! new requests, and hands all of these to the socket in one write. A request costs no task, no allocation and no
//! system call of its own.
//!
//! Batches carry no producer id: duplicates are not detected, and a request is not repeated. A failed one counts as an
//! error; then the line lets the rest come in, pauses, and asks who leads. One that is told who leads instead has not failed: nothing of it
//! was taken, and it goes to that node, its time counted from when it was first due.

use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use lnc_client::Client;
use lnc_protocol::ErrorCode;
use lnc_protocol::frame::{self, Flags};
use lnc_protocol::message::{Opcode, decode_reply};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::WriteHalf;
use tokio::sync::Notify;
use tokio::time::sleep_until;

use crate::batches::{Batches, Load, Stamp};
use crate::delivery::Deliveries;
use crate::measure::Recorder;
use crate::produce::Plan;
use crate::schedule::Pace;
use crate::topics;
use crate::wire::{CONNECTION_LOST, MAX_REPLY, NO_ANSWER, PROTOCOL_BROKEN, connect};

/// Room for replies, in bytes: what one read takes in at most.
const READ_CHUNK: usize = 64 * 1024;

/// The pause after a failed request.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(10);

/// How long a request may stay unanswered after the end before it is given up and counted as an error.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// What the lines of one thread share.
pub(crate) struct Shared {
    pub(crate) plan: Arc<Plan>,
    pub(crate) client: Client,
    pub(crate) batches: RefCell<Batches>,
    pub(crate) recorder: RefCell<Recorder>,
    /// Where acknowledgements meet deliveries, if the run has a consumer.
    pub(crate) deliveries: Option<Rc<RefCell<Deliveries>>>,
}

/// One connection and the requests under way on it.
pub(crate) struct Line {
    shared: Rc<Shared>,
    /// The partitions that it writes to in turn, as indices into the plan's.
    targets: Vec<usize>,
    turn: usize,
    pace: Pace,
    /// Notified when a request of the open loop is due.
    wake: Rc<Notify>,
    slots: Slots,
    flags: Flags,
    /// Set after an error: no new requests on this connection.
    draining: bool,
    /// When requests were due that a node has not taken, since another one leads.
    redirected: Vec<u64>,
}

impl Line {
    pub(crate) fn new(shared: Rc<Shared>, targets: Vec<usize>, pace: Pace, wake: Rc<Notify>) -> Self {
        let slots = Slots::new(shared.plan.args.in_flight);
        Line {
            shared,
            targets,
            turn: 0,
            pace,
            wake,
            slots,
            flags: Flags::NONE,
            draining: false,
            redirected: Vec::new(),
        }
    }

    /// Keeps requests under way until the window ends, then waits for the last answers.
    pub(crate) async fn run(mut self) {
        let plan = self.shared.plan.clone();
        let mut leader_known = true;
        while !self.pace.is_over(plan.clock.now()) {
            let until = plan.clock.instant(plan.window.until);
            let connected = tokio::time::timeout_at(until.into(), self.connect(leader_known)).await;
            let error = match connected {
                Err(_) => break,
                Ok(Ok(stream)) => match self.session(stream).await {
                    Ok(()) => break,
                    // What failed has been counted, one by one.
                    Err(None) => None,
                    Err(error) => error,
                },
                Ok(Err(error)) => Some(error),
            };
            if let Some(error) = error {
                self.fail_all(error);
            }
            leader_known = false;
            self.draining = false;
            if self.redirected.is_empty() {
                tokio::time::sleep(PAUSE_AFTER_ERROR).await;
            }
        }
        let end = plan.clock.now();
        for due in std::mem::take(&mut self.redirected) {
            self.shared.recorder.borrow_mut().request_failed(due, ErrorCode::NotLeader.name());
        }
        while let Some(due) = self.pace.take_missed() {
            self.shared.recorder.borrow_mut().never_sent(due, end);
        }
    }

    async fn connect(&mut self, leader_known: bool) -> Result<TcpStream, &'static str> {
        let plan = &self.shared.plan;
        let first = &plan.topology.targets[self.targets[0]];
        let (address, leaders) = if leader_known {
            let leaders = self.targets.iter().map(|target| plan.topology.targets[*target].leader).collect();
            (plan.topology.address(first.leader).cloned(), leaders)
        } else {
            let now = topics::look_up(&self.shared.client, std::slice::from_ref(&first.topic)).await;
            let now = now.map_err(|_| "no metadata")?;
            let target = now.targets.iter().find(|target| target.partition == first.partition);
            let leader = target.ok_or("no leader")?.leader;
            // Of the others nothing new is known; the broker passes on what it does not lead.
            let others = self.targets.iter().skip(1).map(|_| None);
            (now.address(leader).cloned(), [leader].into_iter().chain(others).collect::<Vec<_>>())
        };
        let direct = leaders[0].is_some() && leaders.iter().all(|leader| *leader == leaders[0]);
        self.flags = if direct { Flags::NO_FORWARD } else { Flags::NONE };
        connect(&address.ok_or("no leader")?).await.map(|(stream, _)| stream)
    }

    /// Uses one connection. Ends well when the run is over; else with the error that its requests are to fail with, or
    /// with `None` if all of them have been answered.
    async fn session(&mut self, mut stream: TcpStream) -> Result<(), Option<&'static str>> {
        let plan = self.shared.plan.clone();
        let (mut reader, writer) = stream.split();
        let (mut input, mut output) = (BytesMut::with_capacity(READ_CHUNK), BytesMut::new());
        let wake = self.wake.clone();
        let last = plan.clock.instant(plan.window.until) + PATIENCE;
        let mut give_up = pin!(sleep_until(last.into()));
        loop {
            self.fill(&mut output);
            send(&writer, &mut output).map_err(Some)?;
            if self.slots.is_empty() && output.is_empty() {
                if self.draining {
                    return Err(None);
                }
                if self.pace.is_over(plan.clock.now()) {
                    return Ok(());
                }
            }
            input.reserve(READ_CHUNK);
            tokio::select! {
                biased;
                read = reader.read_buf(&mut input) => match read {
                    Ok(read) if read > 0 => self.take_replies(&mut input).map_err(Some)?,
                    _ => return Err(Some(CONNECTION_LOST)),
                },
                () = wake.notified() => {}
                _ = writer.writable(), if !output.is_empty() => {}
                () = &mut give_up => return Err(Some(NO_ANSWER)),
            }
        }
    }

    /// Encodes as many requests as are due and have room.
    fn fill(&mut self, output: &mut BytesMut) {
        if self.draining || self.slots.is_full() {
            return;
        }
        let shared = self.shared.clone();
        let now = shared.plan.clock.now();
        let mut batches = shared.batches.borrow_mut();
        while !self.slots.is_full()
            && let Some(due) = self.redirected.pop().or_else(|| self.pace.take(now))
        {
            let prefix = &shared.plan.prefixes[self.targets[self.turn]];
            self.turn = (self.turn + 1) % self.targets.len();
            let id = shared.deliveries.as_ref().map_or(0, |deliveries| deliveries.borrow_mut().next_id());
            let mut load = Load::default();
            let slot = self.slots.next();
            frame::encode(output, Opcode::Produce, self.flags, u64::from(slot), |body| {
                body.put_slice(prefix);
                load = batches.put(body, Stamp { id, due });
            });
            self.slots.occupy(Request { due, id, load });
        }
    }

    /// Takes in all replies that are complete.
    fn take_replies(&mut self, input: &mut BytesMut) -> Result<(), &'static str> {
        let plan = &self.shared.plan;
        let answered = plan.clock.now();
        let mut recorder = self.shared.recorder.borrow_mut();
        let mut records = 0;
        while let Some(frame) = frame::decode(input, MAX_REPLY).map_err(|_| PROTOCOL_BROKEN)? {
            let request = self.slots.free(frame.header.correlation).ok_or(PROTOCOL_BROKEN)?;
            // The outcome comes first in a reply; 0 is success, and the rest is of no interest here.
            if frame.body.starts_with(&[0, 0]) {
                let Load { records: count, bytes } = request.load;
                recorder.acknowledged(request.due, answered, count, bytes);
                records += u64::from(count);
                if let Some(deliveries) = &self.shared.deliveries {
                    deliveries.borrow_mut().acknowledged(request.id, answered, count);
                }
                continue;
            }
            let reply = decode_reply(Opcode::Produce, frame.body).map_err(|_| PROTOCOL_BROKEN)?;
            self.draining = true;
            match reply.result.err().map(|error| error.code) {
                Some(ErrorCode::NotLeader) => self.redirected.push(request.due),
                code => recorder.request_failed(request.due, code.map_or(PROTOCOL_BROKEN, ErrorCode::name)),
            }
        }
        plan.progress.fetch_add(records, Ordering::Relaxed);
        Ok(())
    }

    /// Counts an error for each request under way, or one if there is none.
    fn fail_all(&mut self, error: &str) {
        let now = self.shared.plan.clock.now();
        let mut recorder = self.shared.recorder.borrow_mut();
        if self.slots.is_empty() {
            recorder.failed(now, error);
        }
        for request in self.slots.clear() {
            recorder.request_failed(request.due, error);
        }
    }
}

/// Hands the socket as much as it takes.
fn send(writer: &WriteHalf<'_>, output: &mut BytesMut) -> Result<(), &'static str> {
    while !output.is_empty() {
        match writer.try_write(output) {
            Ok(sent) => output.advance(sent),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(_) => return Err(CONNECTION_LOST),
        }
    }
    Ok(())
}

/// A request under way.
#[derive(Clone, Copy)]
struct Request {
    due: u64,
    id: u64,
    load: Load,
}

/// The requests under way by their correlation ids.
struct Slots {
    requests: Vec<Option<Request>>,
    free: Vec<u32>,
}

impl Slots {
    fn new(count: u32) -> Self {
        Slots { requests: vec![None; count as usize], free: (0..count).rev().collect() }
    }

    fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.free.len() == self.requests.len()
    }

    /// The slot that the next request will have. There must be one.
    fn next(&self) -> u32 {
        self.free[self.free.len() - 1]
    }

    fn occupy(&mut self, request: Request) {
        if let Some(slot) = self.free.pop() {
            self.requests[slot as usize] = Some(request);
        }
    }

    fn free(&mut self, correlation: u64) -> Option<Request> {
        let slot = usize::try_from(correlation).ok()?;
        let request = self.requests.get_mut(slot)?.take()?;
        self.free.push(slot as u32);
        Some(request)
    }

    fn clear(&mut self) -> Vec<Request> {
        let lost = self.requests.iter_mut().filter_map(Option::take).collect();
        *self = Slots::new(self.requests.len() as u32);
        lost
    }
}
