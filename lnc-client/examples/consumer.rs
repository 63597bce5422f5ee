//! Prints the records of a topic, from the first one on, until interrupted.
//!
//! Usage: `consumer ENDPOINT TOPIC`

use lnc_client::{Client, Start};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(endpoint), Some(topic)) = (arguments.next(), arguments.next()) else {
        return Err("usage: consumer ENDPOINT TOPIC".into());
    };
    let client = Client::builder().endpoints([endpoint]).client_name("consumer-example").build().await?;
    let mut consumer = client.consumer(&topic).start(Start::Earliest).build().await?;
    while let Some(record) = consumer.next().await {
        match record {
            Ok(record) => {
                let value = record.value.unwrap_or_default();
                println!("{}/{}\t{}", record.partition, record.offset, String::from_utf8_lossy(&value));
            }
            Err(error) if error.is_retriable() => eprintln!("{error}"),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
