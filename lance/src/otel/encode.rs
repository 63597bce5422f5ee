//! Spans as OpenTelemetry's protocol has them.

use lnc_broker::trace::{Span, SpanKind, Value};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1 as resource;
use opentelemetry_proto::tonic::trace::v1::{self as proto, ResourceSpans, ScopeSpans, Status, span, status};
use prost::Message;
use std::time::Duration;

/// Who made the spans.
pub(super) struct Resource {
    pub(super) service_name: String,
    pub(super) node: u64,
}

/// The body of a delivery. `began` is when the spans' stopwatch did, since the Unix epoch.
pub(super) fn encode(resource: &Resource, began: Duration, spans: &[Span]) -> Vec<u8> {
    let text = |text: &str| any_value::Value::StringValue(text.to_owned());
    let version = env!("CARGO_PKG_VERSION");
    let attributes = vec![
        attribute("service.name", text(&resource.service_name)),
        attribute("service.instance.id", text(&resource.node.to_string())),
        attribute("service.version", text(version)),
    ];
    let scope =
        InstrumentationScope { name: "lance".into(), version: version.into(), ..InstrumentationScope::default() };
    let spans = spans.iter().map(|span| encode_span(began, span)).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
    let resource = resource::Resource { attributes, ..resource::Resource::default() };
    let spans = ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![spans] }.encode_to_vec()
}

fn encode_span(began: Duration, made: &Span) -> proto::Span {
    /// The flag of W3C Trace Context for a trace that is recorded.
    const SAMPLED: u32 = 1;
    let time = |us: u64| (began + Duration::from_micros(us)).as_nanos() as u64;
    let value = |value: &Value| match value {
        Value::Text(text) => any_value::Value::StringValue(text.clone()),
        Value::Number(number) => any_value::Value::IntValue(i64::try_from(*number).unwrap_or(i64::MAX)),
    };
    let kind = match made.kind {
        SpanKind::Server => span::SpanKind::Server,
        SpanKind::Client => span::SpanKind::Client,
        SpanKind::Internal => span::SpanKind::Internal,
    };
    let error = made.error.as_deref();
    let named = made.attributes.iter().map(|(key, found)| attribute(key, value(found)));
    let failed = error.map(|error| attribute("error.type", any_value::Value::StringValue(error.to_owned())));
    let status = error.map(|error| Status { message: error.to_owned(), code: status::StatusCode::Error as i32 });
    proto::Span {
        trace_id: made.trace_id.to_be_bytes().to_vec(),
        span_id: made.span_id.to_be_bytes().to_vec(),
        parent_span_id: made.parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
        flags: SAMPLED,
        name: made.name.clone().into_owned(),
        kind: kind as i32,
        start_time_unix_nano: time(made.start_us),
        end_time_unix_nano: time(made.end_us),
        attributes: named.chain(failed).collect(),
        status,
        ..proto::Span::default()
    }
}

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_becomes_what_opentelemetry_expects() {
        let span = Span {
            trace_id: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736,
            span_id: 0x00f0_67aa_0ba9_02b7,
            parent: Some(5),
            name: "produce words".into(),
            kind: SpanKind::Server,
            start_us: 1,
            end_us: 1_000_002,
            error: Some("Timeout".into()),
            attributes: vec![("lance.group", Value::Number(3)), ("lance.acks", Value::Text("quorum".into()))],
        };
        let resource = Resource { service_name: "s".into(), node: 7 };
        let root = Span { parent: None, error: None, ..span.clone() };
        let body = encode(&resource, Duration::from_secs(1_700_000_000), &[span, root]);
        let mut request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
        let mut spans = request.resource_spans.remove(0);
        let attributes = spans.resource.unwrap().attributes;
        let text = |value: &str| any_value::Value::StringValue(value.to_owned());
        assert_eq!(attributes[0], attribute("service.name", text("s")));
        assert_eq!(attributes[1], attribute("service.instance.id", text("7")));
        let spans = spans.scope_spans.remove(0).spans;
        let span = &spans[0];
        assert_eq!(span.trace_id[..3], [0x4b, 0xf9, 0x2f]);
        assert_eq!(span.span_id, [0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
        assert_eq!(span.parent_span_id, [0, 0, 0, 0, 0, 0, 0, 5]);
        assert_eq!(span.start_time_unix_nano, 1_700_000_000_000_001_000);
        assert_eq!(span.end_time_unix_nano, 1_700_000_001_000_002_000);
        assert_eq!((span.name.as_str(), span.kind()), ("produce words", span::SpanKind::Server));
        let expected = [
            attribute("lance.group", any_value::Value::IntValue(3)),
            attribute("lance.acks", text("quorum")),
            attribute("error.type", text("Timeout")),
        ];
        assert_eq!(span.attributes, expected);
        assert_eq!(span.status.as_ref().unwrap().code(), status::StatusCode::Error);
        assert!(spans[1].parent_span_id.is_empty() && spans[1].status.is_none());
    }
}
