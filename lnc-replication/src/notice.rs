//! What a node tells its peers of itself: its wall clock, whether it is about to end, and what operators want to see of it. It
//! travels beside the heartbeats and is no part of consensus, which knows nothing of time: nothing of it is stored, and one that
//! is lost is followed by the next.

use crate::wire::{WireError, bool_of, u16_of, u64_of};
use bytes::{BufMut, Bytes, BytesMut};
use lnc_raft::NodeId;

/// The first format in which nodes tell each other such things.
pub const SINCE_FORMAT: u32 = 3;

/// Its kind of message; those below are Raft's, transfers and traces.
pub(crate) const KIND: u8 = 129;

/// Longest address, in bytes: a name of 255, and a port.
const MAX_ADDRESS: usize = 262;

/// Bytes left on a disk that does not tell.
const UNKNOWN: u64 = u64::MAX;

/// What operators want to see of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its version of LANCE: major, minor, patch.
    pub version: [u16; 3],
    /// Bytes that are left on its disk, as far as it can tell.
    pub free_bytes: Option<u64>,
    /// What it has done for clients.
    pub traffic: Traffic,
}

/// What a node has done for clients since it started. Who compares two of them has rates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Records accepted from producers, as leader.
    pub records_in: u64,
    /// Bytes of them.
    pub bytes_in: u64,
    /// Records sent to consumers.
    pub records_out: u64,
    /// Bytes of them.
    pub bytes_out: u64,
    /// Produce requests answered.
    pub produces: u64,
    /// Microseconds from their arrival to their replies, in sum.
    pub produce_us: u64,
}

impl Traffic {
    const fn parts(&self) -> [u64; 6] {
        [self.records_in, self.bytes_in, self.records_out, self.bytes_out, self.produces, self.produce_us]
    }

    const fn from_parts([records_in, bytes_in, records_out, bytes_out, produces, produce_us]: [u64; 6]) -> Self {
        Self { records_in, bytes_in, records_out, bytes_out, produces, produce_us }
    }
}

impl NodeFacts {
    /// Of this build.
    pub fn of_build(free_bytes: Option<u64>, traffic: Traffic) -> Self {
        let part = |text: &str| text.parse().unwrap_or_default();
        let version = [
            part(env!("CARGO_PKG_VERSION_MAJOR")),
            part(env!("CARGO_PKG_VERSION_MINOR")),
            part(env!("CARGO_PKG_VERSION_PATCH")),
        ];
        Self { version, free_bytes, traffic }
    }

    /// The version as it is written.
    pub fn version(&self) -> String {
        let [major, minor, patch] = self.version;
        format!("{major}.{minor}.{patch}")
    }
}

/// How a node is reached, as `host:port`. Whoever has lost its data may not know that of a member that came after those whom its
/// configuration lists, and could not answer it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnAddresses {
    /// By clients.
    pub client: String,
    /// By the other nodes.
    pub peer: String,
    /// For metrics and health.
    pub http: String,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerNotice {
    /// The sender, whose clock it is.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// Milliseconds since the Unix epoch, when it was sent.
    pub wall_ms: u64,
    /// Whether the sender hands over what it leads, and is not to be given anything to lead.
    pub drains: bool,
    /// What else there is to see of it.
    pub facts: NodeFacts,
    /// How it is reached.
    pub addresses: OwnAddresses,
}

impl PeerNotice {
    /// The fields behind the term, which is 0.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_u8(KIND);
        out.put_u64_le(self.wall_ms);
        out.put_u8(u8::from(self.drains));
        self.facts.version.iter().for_each(|part| out.put_u16_le(*part));
        out.put_u64_le(self.facts.free_bytes.unwrap_or(UNKNOWN));
        self.facts.traffic.parts().iter().for_each(|part| out.put_u64_le(*part));
        for address in [&self.addresses.client, &self.addresses.peer, &self.addresses.http] {
            let len = u16::try_from(address.len()).expect("configurations refuse longer addresses");
            out.put_u16_le(len);
            out.put_slice(address.as_bytes());
        }
    }

    pub(crate) fn decode(from: NodeId, to: NodeId, body: &mut Bytes) -> Result<Self, WireError> {
        let (wall_ms, drains) = (u64_of(body, "wall clock")?, bool_of(body, "end of a node")?);
        let mut version = [0; 3];
        for part in &mut version {
            *part = u16_of(body, "version")?;
        }
        let free_bytes = Some(u64_of(body, "free space")?).filter(|bytes| *bytes != UNKNOWN);
        let mut traffic = [0; 6];
        for part in &mut traffic {
            *part = u64_of(body, "traffic")?;
        }
        let facts = NodeFacts { version, free_bytes, traffic: Traffic::from_parts(traffic) };
        let mut addresses = [(); 3].map(|()| String::new());
        for address in &mut addresses {
            let len = usize::from(u16_of(body, "length of an address")?);
            if len > MAX_ADDRESS {
                return Err(WireError::Unknown { field: "length of an address", value: len as u64 });
            }
            let text = (len <= body.len()).then(|| body.split_to(len)).ok_or(WireError::Truncated("address"))?;
            *address = String::from_utf8(text.to_vec())
                .map_err(|_| WireError::Unknown { field: "bytes of an address", value: len as u64 })?;
        }
        let [client, peer, http] = addresses;
        Ok(Self { from, to, wall_ms, drains, facts, addresses: OwnAddresses { client, peer, http } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formation::Channel;
    use crate::wire::{PeerMessage, put_message, take_message};

    #[test]
    fn a_notice_survives_the_wire_and_no_cut_one_does() {
        let (from, to) = (NodeId(1), NodeId(2));
        let traffic = Traffic::from_parts([1, 2, 3, 4, 5, u64::MAX]);
        let unknown = NodeFacts { version: [0, 0, u16::MAX], free_bytes: None, traffic };
        let of_build = |free| NodeFacts::of_build(Some(free), Traffic::default());
        let facts = [of_build(0), of_build(1 << 40), unknown];
        assert_eq!(facts[0].version(), env!("CARGO_PKG_VERSION").split('-').next().unwrap_or_default());
        for ((wall_ms, drains), facts) in
            [(0, false), (1_700_000_000_000, true), (u64::MAX, false)].into_iter().zip(facts)
        {
            let address = |port: &str| format!("{}:{port}", "n".repeat(usize::from(drains) * 3));
            let addresses = OwnAddresses { client: address("1"), peer: address("2"), http: String::new() };
            let sent = PeerMessage::Notice(PeerNotice { from, to, wall_ms, drains, facts, addresses });
            assert_eq!(sent.channel(), Channel::Control, "it must not wait behind records");
            let mut out = BytesMut::new();
            put_message(&mut out, &sent);
            let bytes = out.freeze();
            assert_eq!(take_message(&mut bytes.clone(), to), Ok(sent));
            for len in 0..bytes.len() {
                assert!(take_message(&mut bytes.slice(..len), to).is_err(), "cut to {len} bytes");
            }
            // Group and term mean nothing in it.
            for position in [0, 12] {
                let mut other = bytes.to_vec();
                other[position] = 1;
                assert!(take_message(&mut Bytes::from(other), to).is_err());
            }
        }
    }
}
