//! One client's connection: what waits to be written to it, what it has under way, and what it holds of the memory that all
//! share.

use super::budget::{Budget, Charge};
use super::outgoing::{Outgoing, Pieces};
use bytes::{Buf, Bytes};
use lnc_metrics::Histogram;
use lnc_protocol::{ErrorReply, Opcode, Reply};
use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;

/// How long a client may take for its greeting. Its place is one that others cannot have.
pub(super) const GREETING_TIME: Duration = Duration::from_secs(10);

/// Least that a client sends of a frame that it has begun, in bytes per second, while others wait for the memory.
const LEAST_RATE: f64 = (64 << 10) as f64;

/// How long it may take to get going.
const GRACE: Duration = Duration::from_secs(1);

/// One client.
pub(super) struct Connection {
    pub(super) out: RefCell<Outgoing>,
    /// What was taken from `out` and the kernel has not accepted yet.
    writing: RefCell<Writing>,
    /// There until the connection closes.
    stream: RefCell<Option<Rc<OwnedWriteHalf>>>,
    /// When the kernel last accepted some, or was first offered them.
    last_written: Cell<Instant>,
    /// The kernel did not take all there is to write, or the connection must close.
    pub(super) wake_writer: Notify,
    /// The connection may be read again.
    pub(super) wake_reader: Notify,
    /// End the connection at once.
    pub(super) abort: Notify,
    /// Requests under way.
    pub(super) requests: Cell<usize>,
    /// Those of them that only read, and that are worth nothing to a client that is gone.
    reads: Cell<usize>,
    /// What they hold of the memory for requests.
    held: RefCell<Charge>,
    /// What has come for it and is no whole frame yet.
    receiving: Cell<Option<Receiving>>,
    fetches: RefCell<Fetches>,
    /// Reply bytes to reckon with for requests under way, fetches aside.
    expected: Cell<usize>,
    /// What replies hold, or may come to hold, of the memory for replies: see [`Connection::settle`].
    owed: RefCell<Charge>,
    /// Since when replies wait to be taken for writing.
    ready_since: Cell<Option<Instant>>,
    /// Close once what is queued has been written.
    pub(super) closing: Cell<bool>,
    pub(super) greeted: Cell<bool>,
    opened: Instant,
    /// What its greeting asked for.
    pub(super) features: Cell<u64>,
    pub(super) last_active: Cell<Instant>,
}

/// A frame that has begun to come.
#[derive(Clone, Copy)]
struct Receiving {
    since: Instant,
    bytes: usize,
}

/// See [`Connection::writing`].
#[derive(Default)]
struct Writing {
    pieces: Pieces,
    /// Since when they waited to be taken.
    since: Option<Instant>,
}

/// The fetches of a connection that are under way.
#[derive(Default)]
struct Fetches {
    /// By correlation id, which a careless client may have used twice: the reply bytes that each may bring, and those that are
    /// kept for it.
    under_way: Vec<(u64, usize, usize)>,
    /// The sums of these bytes.
    expected: usize,
    kept: usize,
}

/// What a request costs in memory while it is under way.
#[derive(Clone, Copy)]
pub(super) struct Cost {
    /// Of the memory for requests.
    pub(super) held: usize,
    /// Of that for replies; for a fetch, at most so many when there are records for it.
    pub(super) reply: usize,
}

fn only_reads(opcode: Opcode) -> bool {
    matches!(opcode, Opcode::Fetch | Opcode::ListOffsets)
}

impl Connection {
    pub(super) fn new(requests: &Rc<Budget>, replies: &Rc<Budget>) -> Self {
        Self {
            out: RefCell::default(),
            writing: RefCell::default(),
            stream: RefCell::default(),
            last_written: Cell::new(Instant::now()),
            wake_writer: Notify::new(),
            wake_reader: Notify::new(),
            abort: Notify::new(),
            requests: Cell::new(0),
            reads: Cell::new(0),
            held: RefCell::new(Charge::new(requests.clone(), 0)),
            receiving: Cell::new(None),
            fetches: RefCell::default(),
            expected: Cell::new(0),
            owed: RefCell::new(Charge::new(replies.clone(), 0)),
            ready_since: Cell::new(None),
            closing: Cell::new(false),
            opened: Instant::now(),
            greeted: Cell::new(false),
            features: Cell::new(0),
            last_active: Cell::new(Instant::now()),
        }
    }

    /// Whether it has been there for so long that its client should have sent its greeting, and has not.
    pub(super) fn is_stranger(&self, now: Instant) -> bool {
        !self.greeted.get() && now.saturating_duration_since(self.opened) > GREETING_TIME
    }

    /// Bytes that its requests under way hold.
    pub(super) fn held(&self) -> usize {
        self.held.borrow().bytes()
    }

    /// Bytes that its replies hold or may come to hold.
    pub(super) fn owed(&self) -> usize {
        self.owed.borrow().bytes()
    }

    /// Bytes that its fetches under way may bring.
    pub(super) fn expected_of_fetches(&self) -> usize {
        self.fetches.borrow().expected
    }

    /// Whether nothing but reads is under way.
    pub(super) fn only_reads(&self) -> bool {
        self.reads.get() == self.requests.get()
    }

    /// A request is under way from now on.
    pub(super) fn begin(&self, opcode: Opcode, correlation: u64, cost: Cost) {
        self.requests.set(self.requests.get() + 1);
        self.reads.set(self.reads.get() + usize::from(only_reads(opcode)));
        let mut held = self.held.borrow_mut();
        let bytes = held.bytes() + cost.held;
        held.set(bytes);
        drop(held);
        if opcode == Opcode::Fetch {
            self.fetches.borrow_mut().start(correlation, cost.reply);
        } else {
            self.expected.set(self.expected.get() + cost.reply);
        }
        self.settle();
    }

    /// A request is answered: `write` appends its reply. What each of several holds is not noted; each gives back its share.
    pub(super) fn end(&self, opcode: Opcode, correlation: u64, write: impl FnOnce(&mut Outgoing)) {
        let requests = self.requests.get().max(1);
        let share = |bytes: usize| bytes - bytes / requests;
        self.requests.set(requests - 1);
        self.reads.set(self.reads.get().saturating_sub(usize::from(only_reads(opcode))));
        let mut held = self.held.borrow_mut();
        let bytes = share(held.bytes());
        held.set(bytes);
        drop(held);
        if opcode == Opcode::Fetch {
            self.fetches.borrow_mut().end(correlation);
        } else {
            let others = (requests - self.fetches.borrow().under_way.len()).max(1);
            self.expected.set(self.expected.get() - self.expected.get() / others);
        }
        write(&mut self.out.borrow_mut());
        self.settle();
    }

    /// Keep so many bytes of the memory for replies for a fetch under way, instead of those that were kept for it.
    pub(super) fn keep(&self, correlation: u64, bytes: usize) {
        self.fetches.borrow_mut().keep(correlation, bytes);
        self.settle();
    }

    /// Bring what is charged for replies in line with what there is.
    fn settle(&self) {
        let bytes = self.unsent() + self.expected.get() + self.fetches.borrow().kept;
        self.owed.borrow_mut().set(bytes);
    }

    /// Note how much of a frame has come, 0 if none has begun.
    pub(super) fn received(&self, bytes: usize) {
        let before = self.receiving.get();
        let since = before.map_or_else(Instant::now, |receiving| receiving.since);
        self.receiving.set((bytes > 0).then_some(Receiving { since, bytes }));
    }

    /// What was begun is whole.
    pub(super) fn received_whole(&self) {
        self.receiving.set(None);
    }

    /// Whether a frame comes so slowly that it may not keep others waiting.
    pub(super) fn is_slow_to_send(&self, now: Instant) -> bool {
        self.receiving.get().is_some_and(|receiving| {
            let waited = now.saturating_duration_since(receiving.since);
            waited > GRACE && (receiving.bytes as f64) < waited.as_secs_f64() * LEAST_RATE
        })
    }

    /// For how long it has left what there is to read unread; `None` if it has all.
    pub(super) fn unread_for(&self, now: Instant) -> Option<Duration> {
        let is_writing = self.writing.borrow().pieces.has_remaining();
        is_writing.then(|| now.saturating_duration_since(self.last_written.get()))
    }

    /// Reply bytes that the kernel has not accepted yet.
    pub(super) fn unsent(&self) -> usize {
        self.out.borrow().len() + self.writing.borrow().pieces.remaining()
    }

    /// Reply bytes that the kernel was offered and has not accepted.
    #[cfg(test)]
    pub(super) fn unwritten(&self) -> usize {
        self.writing.borrow().pieces.remaining()
    }

    pub(super) fn refuse(&self, opcode: u8, correlation: u64, error: ErrorReply) {
        self.out.borrow_mut().put_reply(opcode, correlation, &Reply { result: Err(error) });
        self.settle();
        self.wake_writer.notify_one();
    }

    /// Say something that is no reply, to who speaks another protocol.
    pub(super) fn say(&self, words: Bytes) {
        self.out.borrow_mut().put(words);
        self.settle();
        self.wake_writer.notify_one();
    }

    /// Send what a turn has brought.
    pub(super) fn wake(&self, now: Instant, reply_seconds: &Histogram) {
        self.ready_since.set(self.ready_since.get().or(Some(now)));
        let all = matches!(self.flush(reply_seconds), Ok(true));
        if !all || self.closing.get() {
            self.wake_writer.notify_one();
        }
        self.wake_reader.notify_one();
    }

    /// Hand what is queued to the kernel, as far as it takes it now. Whether that is all.
    fn flush(&self, reply_seconds: &Histogram) -> io::Result<bool> {
        let result = self.write_some(reply_seconds);
        self.settle();
        result
    }

    fn write_some(&self, reply_seconds: &Histogram) -> io::Result<bool> {
        /// Pieces in one write.
        const MAX_PIECES: usize = 64;
        let stream = self.stream.borrow();
        let Some(stream) = stream.as_ref() else { return Ok(false) };
        let mut writing = self.writing.borrow_mut();
        loop {
            if !writing.pieces.has_remaining() {
                if let Some(since) = writing.since.take() {
                    reply_seconds.observe(since.elapsed().as_secs_f64());
                }
                writing.pieces = self.out.borrow_mut().take();
                if !writing.pieces.has_remaining() {
                    return Ok(true);
                }
                writing.since = self.ready_since.take();
                self.last_written.set(Instant::now());
            }
            let mut slices = [IoSlice::new(&[]); MAX_PIECES];
            let count = writing.pieces.chunks_vectored(&mut slices);
            match stream.try_write_vectored(&slices[..count]) {
                Ok(written) => {
                    writing.pieces.advance(written);
                    let now = Instant::now();
                    self.last_written.set(now);
                    self.last_active.set(now);
                    self.wake_reader.notify_one();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Write what is queued until the connection is to close.
    pub(super) async fn write(&self, writer: Rc<OwnedWriteHalf>, reply_seconds: &Histogram) -> io::Result<()> {
        self.stream.replace(Some(writer.clone()));
        loop {
            if !self.flush(reply_seconds)? {
                writer.writable().await?;
            } else if self.closing.get() {
                // Nobody holds the stream's half then, and that ends it.
                self.stream.take();
                return Ok(());
            } else {
                self.wake_writer.notified().await;
            }
        }
    }
}

impl Fetches {
    fn start(&mut self, correlation: u64, bytes: usize) {
        self.under_way.push((correlation, bytes, 0));
        self.expected += bytes;
    }

    fn keep(&mut self, correlation: u64, bytes: usize) {
        if let Some((_, _, kept)) = self.under_way.iter_mut().find(|(id, ..)| *id == correlation) {
            self.kept = self.kept - *kept + bytes;
            *kept = bytes;
        }
    }

    fn end(&mut self, correlation: u64) {
        if let Some(at) = self.under_way.iter().position(|(id, ..)| *id == correlation) {
            let (_, bytes, kept) = self.under_way.swap_remove(at);
            self.expected -= bytes;
            self.kept -= kept;
        }
    }
}
