//! Whoever speaks another protocol on a port is told what it looks like and where to go, in its own words where it has some.
//! A client that waits for the server to speak first, as one of NATS does, is not recognised before its patience ends.

use bytes::{Bytes, BytesMut};
use lnc_protocol::frame::MAGIC;
use lnc_protocol::message::{Reply, encode_reply};
use lnc_protocol::{ErrorCode, ErrorReply};
use lnc_replication::formation::MAGIC as PEER_MAGIC;

/// A port of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// `listen.client`.
    Client,
    /// `listen.peer`.
    Peer,
    /// `listen.http`.
    Http,
}

/// Where this node listens.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// `listen.client`.
    pub client: String,
    /// `listen.peer`.
    pub peer: String,
    /// `listen.http`.
    pub http: String,
}

/// A protocol, as it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spoken {
    Lwp,
    Peer,
    Http,
    Tls,
    Kafka,
    Nats,
    Amqp,
    RabbitStream,
    Mqtt,
    Redis,
}

/// What is said to who came to the wrong port.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// What it looks like, and where it should go.
    pub(crate) text: String,
    /// The same as bytes that it may understand.
    pub(crate) bytes: Bytes,
}

impl Spoken {
    /// `None`: nothing that is known, or too short to say.
    fn of(first: &[u8]) -> Option<Self> {
        const METHODS: [&[u8]; 9] =
            [b"GET ", b"POST ", b"PUT ", b"HEAD ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT ", b"PRI * HTTP/2"];
        /// Beyond this, no first request of a Kafka client is so long.
        const LONGEST_KAFKA: u32 = 1 << 16;
        /// `ApiVersions`, which is what they begin with; older ones ask for `Metadata`, or shake hands for SASL.
        const FIRST_REQUESTS: [u16; 3] = [18, 3, 17];
        let word = |at: usize| first.get(at..at + 4).map(|word| [word[0], word[1], word[2], word[3]]);
        if word(0) == Some(MAGIC.to_le_bytes()) {
            return Some(Self::Lwp);
        }
        // A frame between nodes begins with its length and two checksums.
        if word(12) == Some(PEER_MAGIC.to_le_bytes()) {
            return Some(Self::Peer);
        }
        // Before HTTP, which has a method of the name.
        if first.starts_with(b"CONNECT {") || first.starts_with(b"PING\r\n") {
            return Some(Self::Nats);
        }
        if METHODS.iter().any(|method| first.starts_with(method)) {
            return Some(Self::Http);
        }
        // A record of a handshake, of any version of TLS.
        if first.len() >= 6 && first[0] == 0x16 && first[1] == 3 && first[5] == 1 {
            return Some(Self::Tls);
        }
        if first.starts_with(b"AMQP") {
            return Some(Self::Amqp);
        }
        if first.starts_with(b"*") && first.get(1..).is_some_and(is_redis) {
            return Some(Self::Redis);
        }
        // A packet that connects: its kind, its length in one byte or two, and the protocol's name.
        if first.first() == Some(&0x10) && [4, 5].into_iter().any(|at| first.get(at..at + 4) == Some(b"MQTT")) {
            return Some(Self::Mqtt);
        }
        // Its first command has the number and the version of a handshake for SASL, but no client's name behind the correlation:
        // a count of properties, whose first half is 0.
        if first.get(4..8) == Some(&[0, 17, 0, 1]) && first.get(12..14) == Some(&[0, 0]) {
            return Some(Self::RabbitStream);
        }
        let (len, key) = (word(0).map(u32::from_be_bytes)?, first.get(4..6)?);
        let is_first = FIRST_REQUESTS.contains(&u16::from_be_bytes([key[0], key[1]]));
        ((8..LONGEST_KAFKA).contains(&len) && is_first).then_some(Self::Kafka)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Lwp => "a client of LANCE",
            Self::Peer => "a node of LANCE",
            Self::Http => "HTTP",
            Self::Tls => "TLS",
            Self::Kafka => "a client of Kafka",
            Self::Nats => "a client of NATS",
            Self::Amqp => "AMQP",
            Self::RabbitStream => "a client of RabbitMQ streams",
            Self::Mqtt => "MQTT",
            Self::Redis => "a client of Redis",
        }
    }

    /// Where it should go.
    fn advice(self, places: &Places) -> String {
        let advice = match self {
            Self::Lwp => return format!("clients connect to listen.client, which is {}", places.client),
            Self::Peer => return format!("nodes connect to listen.peer, which is {}", places.peer),
            Self::Http => return format!("HTTP is served at listen.http, which is {}", places.http),
            Self::Tls => "this version does not speak TLS: connect without it",
            Self::Kafka => "this version does not speak the Kafka protocol: use a client for LWP",
            Self::Nats | Self::Amqp | Self::RabbitStream | Self::Mqtt | Self::Redis => {
                "LANCE does not speak that: use a client for LWP"
            }
        };
        advice.to_owned()
    }
}

/// The count of an array of strings, and the length of the first.
fn is_redis(rest: &[u8]) -> bool {
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (1..=3).contains(&digits) && rest[digits..].starts_with(b"\r\n$")
}

impl Port {
    fn own(self) -> Spoken {
        match self {
            Self::Client => Spoken::Lwp,
            Self::Peer => Spoken::Peer,
            Self::Http => Spoken::Http,
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Client => "listen.client",
            Self::Peer => "listen.peer",
            Self::Http => "listen.http",
        }
    }
}

/// What to say to who begins so at a port. `None`: it is that port's own protocol, or none that is known.
pub(crate) fn answer(places: &Places, port: Port, first: &[u8]) -> Option<Answer> {
    let spoken = Spoken::of(first).filter(|spoken| *spoken != port.own())?;
    let text = format!(
        "this looks like {}, and this port is {} of a LANCE node: {}",
        spoken.name(),
        port.key(),
        spoken.advice(places)
    );
    // A server for HTTP says it in HTTP to all who are no clients of LANCE.
    let bytes = match spoken {
        Spoken::Http => in_http(&text),
        Spoken::Lwp => in_lwp(&text),
        _ if port == Port::Http => in_http(&text),
        // What these print when a server refuses them.
        Spoken::Nats => format!("-ERR '{text}'\r\n").into(),
        Spoken::Redis => format!("-ERR {text}\r\n").into(),
        _ => in_lwp(&text),
    };
    Some(Answer { text, bytes })
}

fn in_http(text: &str) -> Bytes {
    let len = text.len() + 1;
    format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n\
         {text}\n"
    )
    .into()
}

fn in_lwp(text: &str) -> Bytes {
    let mut out = BytesMut::new();
    let error = ErrorReply::new(ErrorCode::CorruptFrame, text);
    encode_reply(&mut out, 0, 0, &Reply { result: Err(error) });
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lnc_protocol::message::{Request, encode_request};
    use lnc_protocol::{Flags, frame};

    fn places() -> Places {
        Places { client: "n1:7".to_owned(), peer: "n1:8".to_owned(), http: "n1:9".to_owned() }
    }

    fn hello() -> Vec<u8> {
        let mut out = BytesMut::new();
        encode_request(&mut out, Flags::NONE, 1, &Request::Ping);
        out.to_vec()
    }

    #[test]
    fn each_port_knows_who_is_wrong_there() {
        let tls = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
        let kafka = [0, 0, 0, 0x23, 0, 18, 0, 3, 0, 0, 0, 1];
        let peer = [&[7; 12][..], &PEER_MAGIC.to_le_bytes()].concat();
        let hello = hello();
        let rabbit = [0, 0, 0, 99, 0, 17, 0, 1, 0, 0, 0, 1, 0, 0, 0, 6, 0, 7];
        let sasl = [0, 0, 0, 30, 0, 17, 0, 1, 0, 0, 0, 1, 0, 7, b'r', b'd'];
        let all: [(&[u8], &str); 13] = [
            (&hello, "a client of LANCE"),
            (&peer, "a node of LANCE"),
            (b"GET /metrics HTTP/1.1\r\n", "like HTTP"),
            (&tls, "like TLS"),
            (&kafka, "a client of Kafka"),
            (&sasl, "a client of Kafka"),
            (&rabbit, "a client of RabbitMQ streams"),
            (b"AMQP\x00\x00\x09\x01", "like AMQP"),
            (b"CONNECT {\"verbose\":false}", "a client of NATS"),
            (b"CONNECT host:1 HTTP/1.1\r\n", "like HTTP"),
            (b"\x10\x20\x00\x04MQTT\x05", "like MQTT"),
            (b"\x10\x90\x01\x00\x04MQTT\x05", "like MQTT"),
            (b"*2\r\n$7\r\nCOMMAND\r\n", "a client of Redis"),
        ];
        for port in [Port::Client, Port::Peer, Port::Http] {
            let told: Vec<bool> = all
                .iter()
                .map(|(first, name)| {
                    answer(&places(), port, first)
                        .inspect(|answer| assert!(answer.text.contains(name), "{answer:?}"))
                        .is_some()
                })
                .collect();
            let own = ["a client of LANCE", "a node of LANCE", "like HTTP"][port as usize];
            assert_eq!(told, all.map(|(_, name)| name != own), "{port:?}");
        }
        for nothing in [&b""[..], b"GE", b"*", b"*12", &[0; 16], &[0xff; 16], &[0, 0, 0, 9, 0, 99, 0, 0]] {
            assert_eq!(answer(&places(), Port::Client, nothing), None);
        }
    }

    #[test]
    fn who_has_words_hears_them() {
        let text = "this looks like";
        let http = answer(&places(), Port::Client, b"HEAD / HTTP/1.0").unwrap().bytes;
        assert!(http.starts_with(b"HTTP/1.1 400 ") && String::from_utf8_lossy(&http).contains(text));
        assert!(String::from_utf8_lossy(&http).contains("HTTP is served at listen.http, which is n1:9"));
        let lwp = answer(&places(), Port::Http, &hello()).unwrap().bytes;
        let frame = frame::decode(&mut BytesMut::from(&lwp[..]), 1 << 20).unwrap().unwrap();
        assert!(frame.header.flags.contains(Flags::RESPONSE) && String::from_utf8_lossy(&frame.body).contains(text));
    }
}
