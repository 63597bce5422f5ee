//! What systemd is told about this node (`Type=notify`, see `sd_notify(3)`): that it can serve, what it waits for, that
//! it makes progress, that it stops. Nobody is told anything where there is no `$NOTIFY_SOCKET`.
//!
//! A message is one datagram. One that cannot be sent is logged and sent again with the next beat: systemd would wait for
//! `READY=1` until it ends the node.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// The node's side of the conversation.
#[derive(Debug, Default)]
pub(crate) struct Systemd {
    socket: Option<Socket>,
    /// Time between two signs of life, if systemd wants them.
    watchdog: Option<Duration>,
    last_sign: Option<Instant>,
    /// The readiness that was told last.
    told: Option<Result<(), String>>,
    stopping: bool,
}

#[derive(Debug)]
struct Socket {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl Systemd {
    /// Speaks to whoever has started this process, if that is systemd.
    pub(crate) fn from_environment() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self::default();
        };
        let number = |variable: &str| std::env::var(variable).ok()?.parse::<u64>().ok();
        // The variables are inherited: they may be meant for the process that started this one.
        let for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|_| for_us).map(Duration::from_micros);
        match Self::connected(&name, watchdog) {
            Ok(systemd) => systemd,
            Err(error) => {
                tracing::warn!(socket = ?name, %error, "systemd cannot be told about this node; with Type=notify it will take the start for failed");
                Self::default()
            }
        }
    }

    /// Speaks to the socket of this name; `@` begins an abstract one.
    fn connected(name: &OsString, watchdog: Option<Duration>) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
            _ => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        // Half the time is what systemd recommends; a third leaves room for one that is late.
        let watchdog = watchdog.map(|limit| limit / 3);
        Ok(Self { socket: Some(Socket { socket, address }), watchdog, ..Self::default() })
    }

    /// Says that this node makes progress, and whether it can serve. The first time that it can counts as its start.
    pub(crate) fn beat(&mut self, now: Instant, readiness: &Result<(), String>) {
        if self.socket.is_none() || self.stopping {
            return;
        }
        if self.told.as_ref() != Some(readiness) {
            let sent = match readiness {
                Ok(()) => self.send("READY=1\nSTATUS=ready"),
                Err(reason) => self.send(&format!("STATUS={}", reason.replace('\n', " "))),
            };
            if sent {
                self.told = Some(readiness.clone());
            }
        }
        let due = self.watchdog.is_some_and(|pause| self.last_sign.is_none_or(|at| now >= at + pause));
        if due && self.send("WATCHDOG=1") {
            self.last_sign = Some(now);
        }
    }

    /// Says that this node was told to stop. From then on systemd waits for its end, not for signs of life.
    pub(crate) fn stopping(&mut self) {
        self.send("STOPPING=1\nSTATUS=handing over leadership");
        self.stopping = true;
    }

    /// Whether the message was sent.
    fn send(&self, message: &str) -> bool {
        let Some(Socket { socket, address }) = &self.socket else { return false };
        let sent = socket.send_to_addr(message.as_bytes(), address);
        if let Err(error) = &sent {
            tracing::debug!(%error, message, "systemd was not told");
        }
        sent.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What systemd has received since the last look.
    fn received(systemd: &UnixDatagram) -> Vec<String> {
        systemd.set_nonblocking(true).unwrap();
        let mut buf = [0; 4096];
        let next = || systemd.recv(&mut buf).ok().map(|length| String::from_utf8_lossy(&buf[..length]).into_owned());
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn the_life_of_a_node() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let mut node = Systemd::connected(&path.into_os_string(), Some(Duration::from_secs(30))).unwrap();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let waits = Err("waits for\nothers".to_owned());

        node.beat(at(0), &waits);
        assert_eq!(received(&systemd), ["STATUS=waits for others", "WATCHDOG=1"]);
        node.beat(at(1), &waits);
        assert!(received(&systemd).is_empty(), "nothing is new");
        node.beat(at(2), &Ok(()));
        assert_eq!(received(&systemd), ["READY=1\nSTATUS=ready"]);
        node.beat(at(9), &Ok(()));
        assert!(received(&systemd).is_empty());
        node.beat(at(10), &Ok(()));
        assert_eq!(received(&systemd), ["WATCHDOG=1"]);
        node.stopping();
        node.beat(at(30), &Err("shutting down".to_owned()));
        assert_eq!(received(&systemd), ["STOPPING=1\nSTATUS=handing over leadership"]);
    }

    #[test]
    fn abstract_sockets() {
        let name = format!("lance-test-{}", std::process::id());
        let systemd = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let mut node = Systemd::connected(&format!("@{name}").into(), None).unwrap();
        node.beat(Instant::now(), &Ok(()));
        assert_eq!(received(&systemd), ["READY=1\nSTATUS=ready"], "and no signs of life, which nobody wants");
    }

    #[test]
    fn what_could_not_be_sent_is_sent_with_the_next_beat() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let mut node = Systemd::connected(&path.clone().into_os_string(), None).unwrap();
        node.beat(Instant::now(), &Ok(()));
        let systemd = UnixDatagram::bind(&path).unwrap();
        for told in ["READY=1\nSTATUS=ready"].map(Some).into_iter().chain([None]) {
            node.beat(Instant::now(), &Ok(()));
            assert_eq!(received(&systemd), told.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_node_without_systemd_tells_nobody() {
        let mut alone = Systemd::default();
        alone.beat(Instant::now(), &Ok(()));
        assert_eq!((alone.told, alone.last_sign), (None, None));
    }
}
