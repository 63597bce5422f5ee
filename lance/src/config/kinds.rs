//! The kinds of value that a key may have, and how each is read from text.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::{memory, units};

/// A kind of value: how people write it, and what the program gets.
pub(super) trait Kind {
    type Value: Clone + PartialOrd;

    /// What a value looks like, to end the sentence "must be …".
    const FORM: &'static str;

    /// Whether a value is written in quotes in TOML.
    const QUOTED: bool = true;

    fn parse(text: &str) -> Option<Self::Value>;
}

/// A whole number.
pub(super) struct Whole;
/// A whole number that fits 32 bits.
pub(super) struct Whole32;
/// A size in bytes.
pub(super) struct Size;
/// A size in bytes, or a share of the memory that this process may use.
pub(super) struct Budget;
/// A duration.
pub(super) struct Span;
/// A path of the file system.
pub(super) struct Path;
/// An address to listen on or to connect to.
pub(super) struct HostPort;
/// The same, or nothing.
pub(super) struct MaybeHostPort;
/// A share of a whole.
pub(super) struct Share;
/// Words.
pub(super) struct Text;
/// Where to post over plain HTTP, or nothing.
pub(super) struct MaybeUrl;

impl Kind for Whole {
    type Value = u64;
    const FORM: &'static str = "a whole number";
    const QUOTED: bool = false;

    fn parse(text: &str) -> Option<u64> {
        text.trim().parse().ok()
    }
}

impl Kind for Whole32 {
    type Value = u32;
    const FORM: &'static str = "a whole number";
    const QUOTED: bool = false;

    fn parse(text: &str) -> Option<u32> {
        text.trim().parse().ok()
    }
}

impl Kind for Size {
    type Value = u64;
    const FORM: &'static str = "a size such as 64MiB";

    fn parse(text: &str) -> Option<u64> {
        units::parse_size(text)
    }
}

impl Kind for Budget {
    type Value = u64;
    const FORM: &'static str = "a size such as 64MiB, or auto";

    fn parse(text: &str) -> Option<u64> {
        if text == "auto" { Some(memory::share()) } else { units::parse_size(text) }
    }
}

impl Kind for Span {
    type Value = Duration;
    const FORM: &'static str = "a duration such as 500ms, 10s or 5m";

    fn parse(text: &str) -> Option<Duration> {
        units::parse_duration(text)
    }
}

impl Kind for Path {
    type Value = PathBuf;
    const FORM: &'static str = "a path";

    fn parse(text: &str) -> Option<PathBuf> {
        (!text.is_empty() && !text.contains('\0')).then(|| PathBuf::from(text))
    }
}

impl Kind for HostPort {
    type Value = Address;
    const FORM: &'static str = "an address such as 127.0.0.1:1992";

    fn parse(text: &str) -> Option<Address> {
        Address::parse(text)
    }
}

impl Kind for MaybeHostPort {
    type Value = Option<Address>;
    const FORM: &'static str = "an address such as broker-1.example:1992, or empty";

    fn parse(text: &str) -> Option<Option<Address>> {
        if text.is_empty() { Some(None) } else { Address::parse(text).map(Some) }
    }
}

impl Kind for Share {
    type Value = f64;
    const FORM: &'static str = "a number";
    const QUOTED: bool = false;

    fn parse(text: &str) -> Option<f64> {
        text.trim().parse().ok().filter(|share: &f64| share.is_finite())
    }
}

impl Kind for Text {
    type Value = String;
    const FORM: &'static str = "a text of up to 255 bytes, not empty";

    fn parse(text: &str) -> Option<String> {
        let fits = (1..256).contains(&text.len()) && !text.contains(char::is_control);
        fits.then(|| text.to_owned())
    }
}

impl Kind for MaybeUrl {
    type Value = Option<Url>;
    const FORM: &'static str = "a URL such as http://127.0.0.1:4318/v1/traces, with a port and without TLS, or empty";

    fn parse(text: &str) -> Option<Option<Url>> {
        if text.is_empty() { Some(None) } else { Url::parse(text).map(Some) }
    }
}

/// A place to post to over plain HTTP: `http://host:port/path`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Url {
    /// Where to connect.
    pub address: Address,
    /// What to ask for there, with the leading slash.
    pub path: String,
}

impl Url {
    /// Reads a URL. A path that is not given is that of traces in OTLP.
    fn parse(text: &str) -> Option<Self> {
        let rest = text.trim().strip_prefix("http://")?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let address = Address::parse(authority).filter(|address| address.port() > 0 && !address.is_unspecified())?;
        let plain = |c: char| c.is_ascii_graphic() && c != '#';
        let path = if path.len() <= 1 { "/v1/traces" } else { path };
        path.chars().all(plain).then(|| Self { address, path: path.to_owned() })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.address, self.path)
    }
}

/// `host:port`, where the host is a name, an IPv4 address, or an IPv6 address in brackets. Names are resolved when the
/// address is used, not when it is read: a peer's name may not exist yet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    text: String,
    host_end: usize,
    port: u16,
}

impl Address {
    /// Longest text that is taken for an address: a DNS name has up to 253 characters.
    const MAX_LEN: usize = 253 + 1 + 5;

    /// Reads `host:port`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.len() > Self::MAX_LEN {
            return None;
        }
        let (host, port) = text.rsplit_once(':')?;
        let bracketed = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
        let valid = match bracketed {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            }
        };
        if !valid || !port.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        Some(Self { host_end: host.len(), port: port.parse().ok()?, text: text.to_owned() })
    }

    /// The whole address, as `ToSocketAddrs` takes it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The host; an IPv6 address keeps its brackets.
    pub fn host(&self) -> &str {
        &self.text[..self.host_end]
    }

    /// The port; 0 lets the system choose one to listen on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the host means "all interfaces", which nobody can connect to by that name.
    pub fn is_unspecified(&self) -> bool {
        let host = self.host().trim_matches(['[', ']']);
        host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_unspecified())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A value that is one of a few words.
macro_rules! choice {
    ($(#[$doc:meta])+ $name:ident, $form:literal { $($(#[$variant_doc:meta])+ $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$variant_doc])+ $variant,)+ }

        impl $name {
            /// The word that stands for it in the configuration.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl Kind for $name {
            type Value = Self;
            const FORM: &'static str = $form;

            fn parse(text: &str) -> Option<Self> {
                match text { $($word => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

choice! {
    /// Which disk backend to use.
    BackendChoice, "auto, uring or threads" {
        /// io_uring where the kernel allows it, else threads.
        Auto = "auto",
        /// io_uring; the node does not start without it.
        Uring = "uring",
        /// A pool of threads with plain system calls.
        Threads = "threads",
    }
}

choice! {
    /// Which events are logged.
    LogLevel, "error, warn, info, debug or trace" {
        /// What keeps the node from its work.
        Error = "error",
        /// And what may soon.
        Warn = "warn",
        /// And what an operator wants to know.
        Info = "info",
        /// And what helps to find a fault.
        Debug = "debug",
        /// And every step.
        Trace = "trace",
    }
}

choice! {
    /// How log lines look.
    LogFormat, "text or json" {
        /// For people.
        Text = "text",
        /// One JSON object per line, for machines.
        Json = "json",
    }
}
