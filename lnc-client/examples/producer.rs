//! Sends the lines of standard input to a topic.
//!
//! Usage: `producer ENDPOINT TOPIC < FILE`

use std::io::{BufRead, stdin};

use lnc_client::{Client, Record};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(endpoint), Some(topic)) = (arguments.next(), arguments.next()) else {
        return Err("usage: producer ENDPOINT TOPIC < FILE".into());
    };
    let client = Client::builder().endpoints([endpoint]).client_name("producer-example").build().await?;
    client.ensure_topic(&topic, 1).await?;
    let producer = client.producer(&topic).build().await?;
    let mut count = 0u64;
    for line in stdin().lock().lines() {
        // Waits only while too much is on its way; the flush below waits for the acknowledgements.
        producer.enqueue(Record::new(line?)).await?;
        count += 1;
    }
    producer.close().await?;
    println!("{count} records stored on a majority of the replicas");
    Ok(())
}
