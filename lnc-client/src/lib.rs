//! The Rust client for LANCE: [`Client`] for topics and the cluster, [`Producer`] to write, [`Consumer`] to read.
//!
//! ```no_run
//! # async fn example() -> lnc_client::Result<()> {
//! use lnc_client::{Client, Record, Start};
//!
//! let client = Client::builder().endpoints(["127.0.0.1:1992"]).build().await?;
//! client.ensure_topic("greetings", 1).await?;
//!
//! let producer = client.producer("greetings").build().await?;
//! producer.send(Record::new("hello")).await?;
//!
//! let mut consumer = client.consumer("greetings").start(Start::Earliest).build().await?;
//! while let Some(record) = consumer.next().await {
//!     println!("{:?}", record?.value);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Everything here runs on tokio, on either of its runtimes. A producer at `acks=quorum` (the default) stores each
//! record once and in order, whatever happens to connections and leaders meanwhile; a consumer neither repeats nor
//! skips a record. What cannot be done in time fails with an [`Error`] that says what, where and whether trying again
//! makes sense.
//!
//! [`Connection`] is the layer below, for tools that want to place each request themselves.
#![forbid(unsafe_code)]

/// The code of the client guide compiles.
#[cfg(doctest)]
#[doc = include_str!("../../docs/CLIENT.md")]
struct ClientGuide;

mod address;
mod admin;
mod backoff;
mod client;
pub mod connection;
mod consumer;
mod error;
mod metadata;
mod pool;
mod producer;
mod record;

pub use address::with_port;
pub use admin::{KnownTopic, ListedOffset};
pub use client::{Client, ClientBuilder};
pub use connection::{ConnectOptions, Connection, PendingReply};
pub use consumer::{ConsumedBatch, Consumer, ConsumerBuilder, OnOutOfRange, Position, ReadFrom, Start};
pub use error::{Error, Operation, Result};
pub use producer::{DeliveryFuture, Producer, ProducerBuilder, partition_for_key};
pub use record::{ConsumedRecord, Delivery, Record};

pub use lnc_protocol::message::{Acks, OffsetSpec, TopicOptions};
pub use lnc_protocol::{Codec, DEFAULT_PORT, ErrorCode};
