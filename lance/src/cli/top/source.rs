//! Where `lance top` gets its documents: one node, over HTTP.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::cli::Global;
use crate::cli::cluster;
use crate::cli::error::CliError;
use crate::status::document::{Document, FORMAT, Query, Sort};

/// The port of the HTTP side where none is given.
const PORT: u16 = 1994;

/// Longest answer that is taken, in bytes: several times the largest document.
const MAX_BYTES: usize = 4 << 20;

/// Longest time for one document.
const PATIENCE: Duration = Duration::from_secs(4);

/// Topics that are asked for at once.
pub(super) const TOPICS: usize = 100;

/// The address in `host:port`, `host`, or `http://host:port/`.
pub(super) fn address(text: &str) -> Result<String, String> {
    if text.starts_with("https://") {
        return Err("nodes speak plain HTTP: write http:// or only host:port".to_owned());
    }
    let rest = text.strip_prefix("http://").unwrap_or(text);
    lnc_client::with_port(rest.strip_suffix('/').unwrap_or(rest), PORT)
}

/// A node's HTTP side.
#[derive(Debug)]
pub(super) struct Source {
    address: String,
    patience: Duration,
}

impl Source {
    pub(super) fn new(address: String, limit: Duration) -> Self {
        Self { address, patience: PATIENCE.min(limit) }
    }

    /// The HTTP side of the first endpoint that answers.
    pub(super) async fn find(global: &Global) -> Result<Self, CliError> {
        let mut failures = Vec::new();
        for endpoint in &global.endpoint {
            match cluster::ask(endpoint.clone(), PATIENCE.min(global.timeout)).await {
                Ok(info) => {
                    let own = info.nodes.iter().find(|node| node.id == info.node_id);
                    let http = own.map_or(String::new(), |node| node.http_address.clone());
                    return Ok(Self::new(reachable(&http, endpoint), global.timeout));
                }
                Err(failure) => failures.push(failure),
            }
        }
        let failures = failures.join("; ");
        Err(CliError::unreachable(format!("no node answers: {failures}; --status names a node's HTTP address")))
    }

    /// The document with the rates of topics, for which a node needs two looks at them.
    pub(super) async fn settled(&self) -> Result<Document, CliError> {
        let document = self.document(&Query::default()).await?;
        let settled = |view: &crate::status::document::View| view.topics.records_per_second.is_some();
        if document.view.as_ref().is_none_or(|view| view.topics.count == 0 || settled(view)) {
            return Ok(document);
        }
        sleep(super::PERIOD).await;
        self.document(&Query::default()).await
    }

    /// The document as it is now.
    pub(super) async fn document(&self, query: &Query) -> Result<Document, CliError> {
        let Self { address, patience } = self;
        let answer = timeout(*patience, self.get(query)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer in {} s", patience.as_secs_f64())));
        let (status, body) =
            answer.map_err(|problem| CliError::unreachable(format!("http://{address}/status.json: {problem}")))?;
        let failed = |problem: String| CliError::failed(format!("http://{address}/status.json: {problem}"));
        if status != StatusCode::OK {
            return Err(failed(format!("answered {status}; is this a node of LANCE, and of this version?")));
        }
        let document: Document =
            serde_json::from_slice(&body).map_err(|error| failed(format!("not a status document: {error}")))?;
        if document.format != FORMAT {
            return Err(failed(format!("the document has format {}, known is {FORMAT}", document.format)));
        }
        Ok(document)
    }

    async fn get(&self, query: &Query) -> Result<(StatusCode, Bytes), String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let stream = TcpStream::connect(&self.address).await.map_err(|e| text(&e))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| text(&e))?;
        let exchange = async {
            let sort = match query.sort {
                Sort::Name => "name",
                Sort::Rate => "rate",
                Sort::Size => "size",
                Sort::Records => "records",
            };
            let (topics, skip) = (query.topics.unwrap_or(TOPICS), query.skip);
            let request = Request::get(format!("/status.json?topics={topics}&skip={skip}&sort={sort}"))
                .header(header::HOST, &self.address)
                .body(Empty::<Bytes>::new())
                .map_err(|e| text(&e))?;
            let answer = sender.send_request(request).await.map_err(|e| text(&e))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_BYTES).collect().await;
            body.map(|body| (status, body.to_bytes())).map_err(|error| error.to_string())
        };
        // The connection moves only while it is polled; it ends when the answer is complete.
        tokio::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => answer,
            end = connection => match end {
                Ok(()) => exchange.await,
                Err(error) => Err(error.to_string()),
            },
        }
    }
}

/// A node that listens on all its addresses names none: then it is where its clients reach it.
fn reachable(http: &str, endpoint: &str) -> String {
    let (host, port) = http.rsplit_once(':').unwrap_or((http, ""));
    let port = port.parse().unwrap_or(PORT);
    let everywhere = ["", "0.0.0.0", "[::]"].contains(&host);
    let host = if everywhere { endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host) } else { host };
    format!("{host}:{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_may_be_urls() {
        for (text, expected) in [
            ("n1:1994", "n1:1994"),
            ("http://n1:2004/", "n1:2004"),
            ("n1", "n1:1994"),
            ("http://n1", "n1:1994"),
            ("[::1]:7", "[::1]:7"),
            ("[::1]", "[::1]:1994"),
        ] {
            assert_eq!(address(text).as_deref(), Ok(expected), "{text}");
        }
        for bad in
            ["", "http://", "https://n1:1994", "n1:port", "::1", "n1:1994/metrics", "u@n1:1994", "n1 :1", "n1:70000"]
        {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_node_that_listens_everywhere_is_where_its_clients_are() {
        assert_eq!(reachable("10.0.0.1:1994", "n1:1992"), "10.0.0.1:1994");
        assert_eq!(reachable("0.0.0.0:2004", "n1:1992"), "n1:2004");
        assert_eq!(reachable("[::]:1994", "[::1]:1992"), "[::1]:1994");
    }
}
