//! A collector of OpenTelemetry as nodes see it: takes OTLP over HTTP, and keeps what it was given.

use crate::support::{PATIENCE, within};
use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use lnc_protocol::TraceContext;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// A span that came in.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) service: String,
    pub(super) node: u64,
    pub(super) span: Span,
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
    attribute.value.as_ref().and_then(|AnyValue { value }| value.as_ref())
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    match value(attributes, key) {
        Some(Value::StringValue(text)) => text.clone(),
        other => panic!("{key} is {other:?} in {attributes:?}"),
    }
}

impl Found {
    pub(super) fn trace_id(&self) -> u128 {
        u128::from_be_bytes(self.span.trace_id[..].try_into().expect("an id has 16 bytes"))
    }

    #[track_caller]
    pub(super) fn text(&self, key: &str) -> String {
        text(&self.span.attributes, key)
    }

    #[track_caller]
    pub(super) fn number(&self, key: &str) -> u64 {
        match value(&self.span.attributes, key) {
            Some(Value::IntValue(number)) => u64::try_from(*number).unwrap(),
            other => panic!("{key} is {other:?} in {:?}", self.span),
        }
    }
}

/// See the module documentation. It ends with the value.
pub(super) struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Found>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    pub(super) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let spans = Arc::new(Mutex::new(Vec::new()));
        let kept = spans.clone();
        let take = move |headers: HeaderMap, body: bytes::Bytes| {
            let kept = kept.clone();
            async move {
                assert_eq!(headers["content-type"], "application/x-protobuf");
                kept.lock().unwrap().extend(read(&body));
                StatusCode::OK
            }
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let routes = Router::new().route("/v1/traces", post(take));
            let serve = async { axum::serve(listener, routes).await };
            runtime.block_on(async {
                tokio::select! {
                    result = serve => result.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self { address, spans, stop: Some(stop), thread: Some(thread) }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/v1/traces", self.address)
    }

    /// Everything that came.
    pub(super) fn spans(&self) -> Vec<Found> {
        self.spans.lock().unwrap().clone()
    }

    /// Waits until a trace has so many, or for a few deliveries; `None` if there are fewer.
    pub(super) fn wait_for(&self, trace: TraceContext, count: usize) -> Option<Vec<Found>> {
        let deadline = Instant::now() + Duration::from_secs(5);
        within(PATIENCE, "spans come, or do not", || {
            let mut spans = self.spans();
            spans.retain(|found| found.trace_id() == trace.trace_id);
            let enough = spans.len() >= count;
            (enough || Instant::now() >= deadline).then_some(enough.then_some(spans))
        })
    }
}

fn read(body: &[u8]) -> Vec<Found> {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let mut found = Vec::new();
    for spans in request.resource_spans {
        let resource = spans.resource.expect("a resource").attributes;
        let (service, node) = (text(&resource, "service.name"), text(&resource, "service.instance.id"));
        let node = node.parse().unwrap();
        let spans = spans.scope_spans.into_iter().flat_map(|scope| scope.spans);
        found.extend(spans.map(|span| Found { service: service.clone(), node, span }));
    }
    found
}

impl Drop for Collector {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
