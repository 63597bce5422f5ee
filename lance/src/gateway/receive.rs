//! Reading from a client: into no buffer while it is silent, into a chunk while it sends small frames, and into one of its own
//! for a long frame, once there is room for all of it.

use super::Gateway;
use super::budget::Charge;
use super::connection::Connection;
use bytes::BytesMut;
use lnc_protocol::frame;
use std::io;
use tokio::net::tcp::OwnedReadHalf;

/// Room for one read from a socket.
pub(super) const READ_CHUNK: usize = 64 << 10;

/// Room that a read finds at least. What was read stays where it is for as long as its requests and their records are
/// needed, so a new chunk for every read would hold on to a chunk for every few of them.
pub(super) const LEAST_READ: usize = READ_CHUNK / 4;

/// What every connection may hold when all others have taken the rest: it counts for none of the budgets.
const SMALL_CHUNK: usize = 4 << 10;

/// What a connection reads into.
#[derive(Default)]
pub(super) struct Chunk {
    pub(super) buf: BytesMut,
    /// For the memory of `buf`, but for a small one.
    _charge: Option<Charge>,
}

impl Chunk {
    /// A buffer of this size takes the place of the one before; it begins with what that one has.
    fn replace(&mut self, capacity: usize, charge: Option<Charge>) {
        let mut buf = BytesMut::with_capacity(capacity.max(self.buf.len()));
        buf.extend_from_slice(&self.buf);
        *self = Self { buf, _charge: charge };
    }

    fn room(&self) -> usize {
        self.buf.capacity() - self.buf.len()
    }

    /// All that came was taken out: what there is no more use for goes.
    pub(super) fn release(&mut self) {
        if self.buf.is_empty() && self.room() < LEAST_READ {
            *self = Self::default();
        }
    }
}

impl Gateway {
    /// Read some bytes, or wait for some. False if the client has sent its last.
    pub(super) async fn receive(
        &self,
        reader: &OwnedReadHalf,
        connection: &Connection,
        chunk: &mut Chunk,
    ) -> io::Result<bool> {
        connection.received(chunk.buf.len());
        loop {
            if chunk.buf.capacity() > 0 || !chunk.buf.is_empty() {
                self.make_room(connection, chunk).await;
                match reader.try_read_buf(&mut chunk.buf) {
                    Ok(read) => return Ok(read > 0),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            if chunk.buf.is_empty() {
                // A client that is silent needs none.
                *chunk = Chunk::default();
            }
            reader.readable().await?;
            if chunk.buf.is_empty() {
                self.make_room(connection, chunk).await;
            }
        }
    }

    /// See to it that there is room for more of what has begun to come.
    async fn make_room(&self, connection: &Connection, chunk: &mut Chunk) {
        let frame = frame::needed(&chunk.buf);
        let missing = frame.saturating_sub(chunk.buf.len()).max(1);
        let is_long = frame > READ_CHUNK;
        if chunk.room() >= if is_long { missing } else { missing.max(LEAST_READ) } {
            return;
        }
        if !is_long && self.chunks.free() >= READ_CHUNK {
            chunk.replace(READ_CHUNK, Some(Charge::new(self.chunks.clone(), READ_CHUNK)));
        } else if chunk.room() >= missing {
            // It will do.
        } else if frame <= SMALL_CHUNK {
            chunk.replace(SMALL_CHUNK, None);
        } else {
            connection.received_whole();
            let charge = self.take_frame_room(connection, frame).await;
            chunk.replace(frame, Some(charge));
            connection.received(chunk.buf.len());
        }
    }

    /// Wait until there is room for a long frame. Whoever has much under way waits until it has less.
    async fn take_frame_room(&self, connection: &Connection, bytes: usize) -> Charge {
        while connection.held() > 0 && !self.requests.allows(connection.held(), bytes) {
            connection.wake_reader.notified().await;
        }
        self.requests.take(bytes.min(self.requests.limit())).await
    }
}
