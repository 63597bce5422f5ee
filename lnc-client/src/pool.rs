//! The connections of a client: for each broker one for requests and one for fetches, made when first needed and
//! again after they broke.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::connection::{ConnectOptions, Connection};
use crate::error::{Error, Result};

/// What a connection is for. Fetched records go over their own connection, so that the short answers to produce
/// requests do not queue behind megabytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    Requests,
    Fetches,
}

pub(crate) struct Pool {
    options: ConnectOptions,
    lines: Mutex<Lines>,
    /// The cluster that all connections are to: given, or that of the first one.
    cluster: Mutex<Option<u128>>,
    /// Connections made in the place of others that had ended.
    reconnects: AtomicU64,
}

type Lines = BTreeMap<(Arc<str>, Purpose), Arc<Line>>;

/// The place of one connection.
struct Line {
    current: Mutex<Option<Connection>>,
    /// Held while connecting, so that many requests that miss the connection make one.
    dialing: tokio::sync::Mutex<Backoff>,
    refused: Mutex<Option<Refused>>,
    /// There has been a connection.
    used: AtomicBool,
}

/// The last attempt to connect failed; until `until`, the failure stands in for another attempt.
struct Refused {
    until: Instant,
    error: Error,
}

impl Pool {
    pub(crate) fn new(options: ConnectOptions, cluster: Option<u128>) -> Self {
        Pool { options, lines: Mutex::default(), cluster: Mutex::new(cluster), reconnects: AtomicU64::new(0) }
    }

    /// The cluster that all connections are to; `None` before the first one.
    pub(crate) fn cluster(&self) -> Option<u128> {
        *self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a broker of another cluster: what this client remembers, producer ids among it, is that cluster's.
    fn admit(&self, connection: Connection) -> Result<Connection> {
        let found = connection.hello().cluster_id;
        let expected = *self.cluster.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(found);
        match found == expected {
            true => Ok(connection),
            false => Err(Error::OtherCluster { address: connection.address().clone(), expected, found }),
        }
    }

    /// The connection to `address`, if one is open.
    pub(crate) fn open(&self, address: &Arc<str>, purpose: Purpose) -> Option<Connection> {
        self.line(address, purpose).current()
    }

    /// An open connection to `address`. Fails at once while the pause after a failed attempt lasts.
    pub(crate) async fn get(&self, address: &Arc<str>, purpose: Purpose) -> Result<Connection> {
        let line = self.line(address, purpose);
        if let Some(connection) = line.current() {
            return Ok(connection);
        }
        let mut backoff = line.dialing.lock().await;
        if let Some(connection) = line.current() {
            return Ok(connection);
        }
        if let Some(error) = line.refusal() {
            return Err(error);
        }
        let result = Connection::connect(address, &self.options).await.and_then(|connection| self.admit(connection));
        let refused = match &result {
            Ok(_) => {
                backoff.reset();
                if line.used.swap(true, Ordering::Relaxed) {
                    self.reconnects.fetch_add(1, Ordering::Relaxed);
                }
                None
            }
            Err(error) => {
                let until = Instant::now() + backoff.next(Duration::ZERO);
                Some(Refused { until, error: error.clone() })
            }
        };
        *line.refused.lock().unwrap_or_else(PoisonError::into_inner) = refused;
        *line.current.lock().unwrap_or_else(PoisonError::into_inner) = result.as_ref().ok().cloned();
        result
    }

    /// How many connections took the place of others that had ended.
    pub(crate) fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Relaxed)
    }

    /// Whether `address` may be tried: it is connected, or no attempt to connect has failed lately.
    pub(crate) fn is_reachable(&self, address: &Arc<str>, purpose: Purpose) -> bool {
        let line = self.line(address, purpose);
        line.current().is_some() || line.refusal().is_none()
    }

    fn line(&self, address: &Arc<str>, purpose: Purpose) -> Arc<Line> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let line = lines.entry((address.clone(), purpose)).or_insert_with(|| {
            Arc::new(Line {
                current: Mutex::new(None),
                dialing: tokio::sync::Mutex::new(Backoff::new()),
                refused: Mutex::new(None),
                used: AtomicBool::new(false),
            })
        });
        line.clone()
    }
}

impl Line {
    fn current(&self) -> Option<Connection> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|connection| !connection.is_open()) {
            *current = None;
        }
        current.clone()
    }

    fn refusal(&self) -> Option<Error> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.as_ref().filter(|refused| Instant::now() < refused.until).map(|refused| refused.error.clone())
    }
}
