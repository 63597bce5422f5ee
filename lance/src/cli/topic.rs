//! `lance topic`: create, list, describe and delete topics.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use lnc_client::KnownTopic;
use lnc_protocol::ErrorCode;
use lnc_protocol::message::{TopicDescription, TopicOptions, TopicSummary};
use serde_json::{Value, json};

use super::confirm::confirm;
use super::error::CliError;
use super::output::{self, OutputFormat, Table, counted, or_dash};
use super::{Global, positive_duration, size};
use crate::config::units::{format_duration, format_size};

/// Create, list, describe and delete topics
#[derive(Debug, Args)]
#[command(
    visible_alias = "topics",
    after_help = "\
Examples:
  lance topic create orders --partitions 6 --max-age 7d --max-bytes 10GiB
  lance topic list
  lance topic describe orders -o json
  lance topic delete orders --yes"
)]
pub(super) struct TopicArgs {
    #[command(subcommand)]
    command: TopicCommand,
}

#[derive(Debug, Subcommand)]
enum TopicCommand {
    /// Create a topic
    #[command(after_help = "\
A limit on age or size deletes whole segments, oldest first. Without a limit, records are kept for ever.

Examples:
  lance topic create orders
  lance topic create clicks --partitions 12 --max-age 7d --max-bytes 10GiB")]
    Create(CreateArgs),
    /// List all topics
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  lance topic list -o json
  lance topic list --stale --endpoint 10.0.0.7    where there is no majority"
    )]
    List {
        /// Only names and partitions, as the node that answers knows them, though no leader says that it is all. For a
        /// cluster that has lost its majority
        #[arg(long)]
        stale: bool,
    },
    /// Show one topic's settings and partitions
    #[command(after_help = "Example:\n  lance topic describe orders")]
    Describe {
        /// Name of the topic
        name: String,
    },
    /// Delete a topic and all its records
    #[command(visible_alias = "rm", after_help = "Example:\n  lance topic delete orders --yes")]
    Delete {
        /// Name of the topic
        name: String,
        /// Do not ask first
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// Name of the topic: up to 249 letters, digits, dots, underscores and dashes
    name: String,
    /// How many partitions
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    partitions: u32,
    /// Delete records older than this, such as 12h or 7d
    #[arg(long, value_name = "TIME", value_parser = positive_duration)]
    max_age: Option<Duration>,
    /// Delete the oldest records of a partition that is larger than this, such as 10GiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_bytes: Option<u64>,
    /// Size at which a partition starts its next segment, such as 64MiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    segment_bytes: Option<u64>,
}

pub(super) async fn run(global: &Global, args: TopicArgs) -> Result<ExitCode, CliError> {
    match args.command {
        TopicCommand::Create(args) => create(global, &args).await?,
        TopicCommand::List { stale: false } => list(global).await?,
        TopicCommand::List { stale: true } => list_known(global).await?,
        TopicCommand::Describe { name } => describe(global, &name).await?,
        TopicCommand::Delete { name, yes } => delete(global, &name, yes).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(global: &Global, args: &CreateArgs) -> Result<(), CliError> {
    let options = TopicOptions {
        max_age_ms: args.max_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        max_bytes: args.max_bytes,
        segment_bytes: args.segment_bytes,
    };
    let client = global.connect().await?;
    let (topic, existed) = match client.describe_topic(&args.name).await {
        Ok(topic) => (as_asked(topic, args.partitions, &options)?, true),
        Err(error) if error.code() == Some(ErrorCode::UnknownTopic) => {
            (client.create_topic_with_retention(&args.name, args.partitions, options).await?, false)
        }
        Err(error) => return Err(error.into()),
    };
    match global.output {
        OutputFormat::Json => {
            let mut json = description_json(&topic);
            json["existed"] = existed.into();
            output::print_json(&json)
        }
        OutputFormat::Table => {
            let partitions = counted(topic.partitions.len() as u64, "partition");
            let name = &topic.name;
            output::print(&match existed {
                true => format!("{name} exists already, with the same settings: {partitions}\n"),
                false => format!("created {name}: {partitions}\n"),
            })
        }
    }
}

/// The topic that exists, if it is what was asked for.
fn as_asked(topic: TopicDescription, partitions: u32, options: &TopicOptions) -> Result<TopicDescription, CliError> {
    let there = settings(topic.partitions.len() as u64, &topic.options);
    let asked = settings(partitions.into(), options);
    if there == asked {
        return Ok(topic);
    }
    let name = &topic.name;
    Err(CliError::failed(format!("{name} exists with other settings: it has {there}; asked for was {asked}")))
}

/// Settings of a topic in words; two topics have the same if the words are.
fn settings(partitions: u64, options: &TopicOptions) -> String {
    let mut text = counted(partitions, "partition");
    let limits = [
        ("max-age", options.max_age_ms.map(|ms| format_duration(Duration::from_millis(ms)))),
        ("max-bytes", options.max_bytes.map(format_size)),
        ("segment-bytes", options.segment_bytes.map(format_size)),
    ];
    for (name, value) in limits {
        text += &value.map_or(String::new(), |value| format!(", {name} {value}"));
    }
    text
}

async fn list(global: &Global) -> Result<(), CliError> {
    let topics = global.connect().await?.list_topics().await?;
    match global.output {
        OutputFormat::Json => output::print_json(&topics.iter().map(summary_json).collect()),
        OutputFormat::Table => {
            let mut table = Table::new(&["TOPIC", "PARTITIONS", "MAX AGE", "MAX SIZE"]);
            for TopicSummary { name, partitions, options, .. } in &topics {
                table.row(vec![name.clone(), partitions.to_string(), age(options), limit(options.max_bytes)]);
            }
            output::print(&table.render())
        }
    }
}

async fn list_known(global: &Global) -> Result<(), CliError> {
    let topics = global.connect().await?.known_topics().await?;
    match global.output {
        OutputFormat::Json => {
            let json = |topic: &KnownTopic| {
                json!({
                    "name": topic.name,
                    "topic_id": output::id(topic.topic_id),
                    "partitions": topic.partitions,
                })
            };
            output::print_json(&topics.iter().map(json).collect())
        }
        OutputFormat::Table => {
            let mut table = Table::new(&["TOPIC", "PARTITIONS"]);
            for topic in &topics {
                table.row(vec![topic.name.clone(), topic.partitions.to_string()]);
            }
            output::print(&table.render())
        }
    }
}

async fn describe(global: &Global, name: &str) -> Result<(), CliError> {
    let topic = global.connect().await?.describe_topic(name).await?;
    match global.output {
        OutputFormat::Json => output::print_json(&description_json(&topic)),
        OutputFormat::Table => output::print(&description_text(&topic)),
    }
}

fn description_text(topic: &TopicDescription) -> String {
    let options = &topic.options;
    let kept = match (options.max_age_ms, options.max_bytes) {
        (None, None) => "keeps all records".to_owned(),
        (Some(_), None) => format!("keeps each partition's records for {}", age(options)),
        (None, Some(_)) => format!("keeps up to {} of each partition", limit(options.max_bytes)),
        (Some(_), Some(_)) => {
            format!("keeps each partition's records for {}, up to {}", age(options), limit(options.max_bytes))
        }
    };
    let mut table = Table::new(&["PARTITION", "GROUP", "LEADER", "START", "END", "SIZE"]);
    for partition in &topic.partitions {
        table.row(vec![
            partition.partition.to_string(),
            partition.group.to_string(),
            or_dash(partition.leader),
            partition.log_start_offset.to_string(),
            partition.high_watermark.to_string(),
            partition.size_bytes.to_string(),
        ]);
    }
    format!("{} (id {}), {kept}\n\n{}", topic.name, topic.topic_id, table.render())
}

async fn delete(global: &Global, name: &str, yes: bool) -> Result<(), CliError> {
    if !yes {
        // Nobody is asked about what is not there.
        if io::stdin().is_terminal() {
            global.connect().await?.describe_topic(name).await?;
        }
        let question = format!("Delete {name} and all its records?");
        confirm(&question, name, &format!("deleting {name} deletes its records"))?;
    }
    global.connect().await?.delete_topic(name).await?;
    match global.output {
        OutputFormat::Json => output::print_json(&json!({ "deleted": name })),
        OutputFormat::Table => output::print(&format!("deleted {name}\n")),
    }
}

fn age(options: &TopicOptions) -> String {
    options.max_age_ms.map_or_else(|| "-".to_owned(), |ms| format_duration(Duration::from_millis(ms)))
}

fn limit(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), format_size)
}

fn options_json(options: &TopicOptions) -> Value {
    json!({
        "max_age_ms": options.max_age_ms,
        "max_bytes": options.max_bytes,
        "segment_bytes": options.segment_bytes,
    })
}

fn summary_json(topic: &TopicSummary) -> Value {
    json!({
        "name": topic.name,
        "topic_id": output::id(topic.topic_id),
        "partitions": topic.partitions,
        "options": options_json(&topic.options),
    })
}

fn description_json(topic: &TopicDescription) -> Value {
    let partitions: Vec<Value> = topic
        .partitions
        .iter()
        .map(|partition| {
            json!({
                "partition": partition.partition,
                "group": partition.group,
                "leader": partition.leader,
                "log_start_offset": partition.log_start_offset,
                "high_watermark": partition.high_watermark,
                "size_bytes": partition.size_bytes,
            })
        })
        .collect();
    json!({
        "name": topic.name,
        "topic_id": output::id(topic.topic_id),
        "created_ms": topic.created_ms,
        "options": options_json(&topic.options),
        "partitions": partitions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lnc_protocol::message::PartitionDescription;

    #[test]
    fn a_description_shows_limits_and_partitions() {
        let partition = PartitionDescription {
            partition: 0,
            group: 2,
            leader: None,
            log_start_offset: 5,
            high_watermark: 17,
            size_bytes: 4096,
        };
        let topic = TopicDescription {
            name: "orders".into(),
            topic_id: u64::MAX,
            options: TopicOptions { max_age_ms: Some(604_800_000), max_bytes: None, segment_bytes: None },
            created_ms: 1,
            partitions: vec![partition],
        };
        let expected = "orders (id 18446744073709551615), keeps each partition's records for 7d\n\n\
                        PARTITION  GROUP  LEADER  START  END  SIZE\n        \
                        0      2       -      5   17  4096\n";
        assert_eq!(description_text(&topic), expected);
        assert_eq!(description_json(&topic)["partitions"][0]["leader"], Value::Null);
        assert_eq!(description_json(&topic)["topic_id"], "18446744073709551615");
        let asked = TopicOptions { max_bytes: Some(10 << 30), ..TopicOptions::default() };
        assert!(as_asked(topic.clone(), 1, &topic.options.clone()).is_ok());
        let refused = as_asked(topic, 2, &asked).unwrap_err();
        let told = "orders exists with other settings: it has 1 partition, max-age 7d; asked for was 2 partitions, max-bytes 10GiB";
        assert_eq!(refused.message(), told);
    }
}
