//! Compares the tables of `docs/LWP.md` with the code, so that neither changes without the other.

use std::fs;
use std::path::Path;

use super::*;
use crate::codec::Codec;
use crate::error::ErrorCode;
use crate::primitives::MAX_LIST_LEN;

fn specification() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/LWP.md")).unwrap()
}

/// The cells of the first table after `start`, without its two head lines.
fn table_after(text: &str, start: &str) -> Vec<Vec<String>> {
    let (_, rest) = text.split_once(start).unwrap_or_else(|| panic!("{start:?} is not specified"));
    let rows = rest.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect();
    rows.skip(2).map(cells).collect()
}

#[test]
fn opcodes_are_as_specified() {
    let specified: Vec<_> = table_after(&specification(), "## Messages\n")
        .into_iter()
        .map(|row| (row[0].parse().unwrap(), row[1].clone()))
        .collect();
    let known: Vec<_> = Opcode::ALL.iter().map(|&opcode| (u8::from(opcode), opcode.name().to_owned())).collect();
    assert_eq!(specified, known);
    for (number, name) in known {
        assert!(specification().contains(&format!("### {name} ({number})\n")), "{name} has no section");
    }
}

#[test]
fn errors_are_as_specified() {
    let known: Vec<_> = ErrorCode::ALL
        .iter()
        .map(|code| {
            let retriable = if code.is_retriable() { "yes" } else { "no" };
            vec![code.code().to_string(), code.name().into(), retriable.into(), code.text().into()]
        })
        .collect();
    assert_eq!(table_after(&specification(), "## Errors\n"), known);
}

#[test]
fn codecs_flags_and_limits_are_as_specified() {
    let text = specification();
    let known: Vec<_> =
        Codec::ALL.iter().map(|codec| vec![codec.name().to_owned(), (*codec as u8).to_string()]).collect();
    let codecs = table_after(&text, "compared with the number of bytes.\n");
    assert_eq!(codecs.into_iter().map(|row| row[..2].to_vec()).collect::<Vec<_>>(), known);

    let flags = table_after(&text, "and then the body |\n");
    let flags: Vec<_> = flags.into_iter().map(|row| (row[0].parse().unwrap(), row[1].clone())).collect();
    let known = [
        (Flags::RESPONSE, "RESPONSE"),
        (Flags::NO_FORWARD, "NO_FORWARD"),
        (Flags::FORWARDED, "FORWARDED"),
        (Flags::TRACED, "TRACED"),
    ];
    assert_eq!(flags, known.map(|(flag, name)| (flag.bits(), name.to_owned())));

    let context = text.split("## Trace contexts\n").nth(1).expect("trace contexts are specified");
    assert!(context.contains(&format!("{} bytes", crate::trace::LEN)));
    assert!(context.contains(&format!("feature {}", crate::trace::FEATURE)));

    assert_eq!(MAX_LIST_LEN, 1_048_576);
    assert!(text.contains("at most 1,048,576"));
}

/// How the specification writes a Rust type.
fn specified_type(rust: &str) -> String {
    let inside = |generic: &str| rust.strip_prefix(generic)?.strip_suffix('>').map(specified_type);
    if let Some(inner) = inside("Option<") {
        return format!("option of {inner}");
    }
    if let Some(inner) = inside("Vec<") {
        return format!("list of {inner}");
    }
    match rust {
        "String" => "string".into(),
        "Bytes" | "Records" => "bytes".into(),
        other => other.into(),
    }
}

#[test]
fn the_fields_of_every_message_are_as_specified() {
    macro_rules! structs {
        ($($name:ident)*) => { [$((stringify!($name), $name::FIELDS),)*] };
    }
    let structs = structs! {
        HelloRequest HelloResponse MetadataRequest MetadataResponse NodeInfo TopicMetadata PartitionMetadata
        ClusterInfoResponse ChangeMembersRequest FormatsResponse RaiseFormatRequest TransferStatus NodeStatus GroupStatus PeerProgress CreateTopicRequest TopicOptions TopicDescription
        PartitionDescription DeleteTopicRequest TopicSummary DescribeTopicRequest InitProducerResponse ProduceRequest
        ProduceResponse FetchRequest FetchPartition FetchedPartition ListOffsetsRequest ListOffsetsPartition
        PartitionOffset LeaderHint
    };
    let text = specification();
    for (name, fields) in structs {
        let known: Vec<_> = fields.iter().map(|(field, rust)| vec![field.to_string(), specified_type(rust)]).collect();
        let specified = table_after(&text, &format!("**{name}**:"));
        assert_eq!(specified.into_iter().map(|row| row[..2].to_vec()).collect::<Vec<_>>(), known, "{name}");
    }
}
