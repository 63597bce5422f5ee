//! One delivery: a POST over a connection of its own.

use super::DeliveryError;
use crate::config::Url;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use tokio::net::TcpStream;

/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 << 10;

/// Posts an encoded request, and gives how many spans the collector has rejected of those that it took.
pub(super) async fn post(url: &Url, body: Vec<u8>) -> Result<u64, DeliveryError> {
    let lost = |error: &dyn std::error::Error| DeliveryError::Lost(error.to_string());
    let stream = TcpStream::connect(url.address.as_str()).await.map_err(|e| lost(&e))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| lost(&e))?;
    let exchange = async {
        let request = Request::post(url.path.as_str())
            .header(header::HOST, url.address.as_str())
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::USER_AGENT, concat!("lance/", env!("CARGO_PKG_VERSION")))
            .body(Full::<Bytes>::from(body))
            .map_err(|e| lost(&e))?;
        let answer = sender.send_request(request).await.map_err(|e| lost(&e))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        if !status.is_success() {
            return Err(DeliveryError::Refused(status));
        }
        // An answer that is none of protobuf says no more than its status did.
        let told = body.ok().and_then(|body| ExportTraceServiceResponse::decode(body.to_bytes()).ok());
        let partial = told.and_then(|told| told.partial_success);
        Ok(partial.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or(0)))
    };
    // The connection moves only while it is polled; it ends when the answer is complete.
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        end = connection => match end {
            Ok(()) => exchange.await,
            Err(error) => Err(lost(&error)),
        },
    }
}
