//! How a piece of the input becomes a record: a line with or without a key, or a JSON document as `lance consume
//! --format json` prints it.

use std::ops::Range;

use bytes::Bytes;
use lnc_client::Record;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use super::input::find;

/// What the options say of each record.
pub(super) struct Shape {
    pub(super) kind: Kind,
    /// Headers that every record gets.
    pub(super) headers: Vec<(String, Option<Bytes>)>,
    /// The partition, whatever a document says.
    pub(super) partition: Option<u32>,
}

pub(super) enum Kind {
    Text {
        /// What stands between key and value.
        separator: Option<Vec<u8>>,
        /// A value that is this text is none.
        null: Option<Vec<u8>>,
    },
    Json,
}

impl Shape {
    /// The record in a part of a block; `None` for a blank line between documents.
    pub(super) fn record(
        &self,
        block: &Bytes,
        at: Range<usize>,
        timestamp_ms: Option<i64>,
    ) -> Result<Option<Record>, String> {
        let mut record = match &self.kind {
            Kind::Text { separator, null } => {
                let (key, value) = split_key(block, at, separator.as_deref());
                let value = Some(value).filter(|value| null.as_ref().is_none_or(|null| value != null));
                Record { key, value, ..Record::default() }
            }
            Kind::Json if block[at.clone()].trim_ascii().is_empty() => return Ok(None),
            Kind::Json => document(&block[at])?,
        };
        record.headers.extend(self.headers.iter().cloned());
        record.timestamp_ms = record.timestamp_ms.or(timestamp_ms);
        record.partition = self.partition.or(record.partition);
        Ok(Some(record))
    }
}

/// Key and value of one line, as parts of its block.
fn split_key(block: &Bytes, line: Range<usize>, separator: Option<&[u8]>) -> (Option<Bytes>, Bytes) {
    let found = separator.and_then(|separator| Some((find(separator, &block[line.clone()])?, separator.len())));
    match found {
        Some((at, length)) => {
            let key = block.slice(line.start..line.start + at);
            (Some(key), block.slice(line.start + at + length..line.end))
        }
        None => (None, block.slice(line)),
    }
}

/// A record as JSON. What is unknown is refused, since a name with a typing error would be data lost.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a document in braces")]
struct Document {
    key: Option<String>,
    key_hex: Option<String>,
    /// `Some(None)` is the null that makes a tombstone, which must not come of forgetting.
    #[serde(default, deserialize_with = "given")]
    value: Option<Option<String>>,
    value_hex: Option<String>,
    #[serde(default)]
    headers: Vec<Header>,
    timestamp_ms: Option<i64>,
    partition: Option<u32>,
    /// Where the record was read: it says nothing about where it goes.
    #[serde(rename = "topic")]
    _topic: Option<IgnoredAny>,
    #[serde(rename = "offset")]
    _offset: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a header such as {\"name\":\"n\",\"value\":\"v\"}")]
struct Header {
    name: String,
    #[serde(default, deserialize_with = "given")]
    value: Option<Option<String>>,
    value_hex: Option<String>,
}

fn given<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(from).map(Some)
}

fn document(bytes: &[u8]) -> Result<Record, String> {
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(
            "this is no document in braces, such as {\"key\":\"k\",\"value\":\"v\"}; see lance help produce".to_owned()
        );
    }
    let document: Document = serde_json::from_slice(bytes).map_err(|error| in_plain_words(&error))?;
    let mut headers = Vec::with_capacity(document.headers.len());
    for Header { name, value, value_hex } in document.headers {
        let value = bytes_of(value, value_hex, &format!("value of header {name}"))?;
        headers.push((name, value));
    }
    Ok(Record {
        key: bytes_of(
            Some(document.key).filter(|key| key.is_some() || document.key_hex.is_none()),
            document.key_hex,
            "key",
        )?,
        value: bytes_of(document.value, document.value_hex, "value")?,
        headers,
        timestamp_ms: document.timestamp_ms,
        partition: document.partition,
    })
}

/// What is wrong with a document, and at which byte of it; which line it is the caller knows.
fn in_plain_words(error: &serde_json::Error) -> String {
    let (text, column) = (error.to_string(), error.column());
    let what = text.split(" at line ").next().unwrap_or(&text);
    let words = [
        ("invalid type: ", "there is "),
        ("invalid value: ", "there is "),
        ("invalid length ", "the list has a length of "),
        ("there is sequence", "there is a list"),
        ("there is map", "there is an object in braces"),
        ("expected a sequence", "where a list is expected"),
        ("expected a string", "where text in quotes is expected"),
        ("expected i64", "where a whole number is expected"),
        ("expected u32", "where a number of a partition is expected"),
        ("expected ident", "true, false or null is misspelt"),
    ];
    let plain = words.iter().fold(what.to_owned(), |text, (from, to)| text.replace(from, to));
    format!("{plain} (byte {column}); see lance help produce")
}

/// The bytes of a member that is text, or null, or has its bytes in hexadecimal.
fn bytes_of(text: Option<Option<String>>, hex: Option<String>, what: &str) -> Result<Option<Bytes>, String> {
    match (text, hex) {
        (Some(text), None) => Ok(text.map(Bytes::from)),
        (None, Some(hex)) => match decode(&hex) {
            Some(bytes) => Ok(Some(bytes.into())),
            None => Err(format!("the {what} in hexadecimal must have pairs of the digits 0 to f")),
        },
        (None, None) => Err(format!("the {what} is missing; null says that there is none")),
        (Some(_), Some(_)) => Err(format!("the {what} is there twice, as text and in hexadecimal")),
    }
}

fn decode(hex: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?));
    if rest.is_empty() { bytes.collect() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::format::Format;
    use lnc_client::ConsumedRecord;

    #[test]
    fn keys_are_split_at_the_first_separator() {
        let block = Bytes::from_static(b"x:a::b:c\n");
        let split = |separator: Option<&[u8]>| {
            let (key, value) = split_key(&block, 2..8, separator);
            (key.map(|key| key.to_vec()), value.to_vec())
        };
        assert_eq!(split(None), (None, b"a::b:c".to_vec()));
        assert_eq!(split(Some(b":")), (Some(b"a".to_vec()), b":b:c".to_vec()));
        assert_eq!(split(Some(b"::")), (Some(b"a".to_vec()), b"b:c".to_vec()));
        assert_eq!(split(Some(b"c\n")), (None, b"a::b:c".to_vec()));
        assert_eq!(split(Some(b"a::b:c")), (Some(b"".to_vec()), b"".to_vec()));
    }

    #[test]
    fn a_value_that_is_the_text_for_null_is_a_tombstone() {
        let shape = Shape {
            kind: Kind::Text { separator: Some(b":".to_vec()), null: Some(b"NULL".to_vec()) },
            headers: vec![("source".to_owned(), Some(Bytes::from_static(b"web")))],
            partition: Some(3),
        };
        let made =
            |line: &'static [u8]| shape.record(&Bytes::from_static(line), 0..line.len(), Some(7)).unwrap().unwrap();
        let tombstone = made(b"k:NULL");
        assert_eq!((tombstone.key.as_deref(), tombstone.value), (Some(&b"k"[..]), None));
        assert_eq!((tombstone.headers.len(), tombstone.timestamp_ms, tombstone.partition), (1, Some(7), Some(3)));
        for other in [&b"k:"[..], b"k:NULLS", b"NULL:k"] {
            assert!(made(other).value.is_some());
        }
    }

    fn json(line: &str) -> Result<Option<Record>, String> {
        let shape = Shape { kind: Kind::Json, headers: Vec::new(), partition: None };
        shape.record(&Bytes::copy_from_slice(line.as_bytes()), 0..line.len(), None)
    }

    #[test]
    fn what_was_printed_as_json_is_read_as_the_same_record() {
        let bytes = |bytes: &'static [u8]| Some(Bytes::from_static(bytes));
        let cases = [
            (bytes(b"k\"\n"), bytes(b"\xff\0"), vec![(Bytes::from_static(b"h"), None)]),
            (None, None, Vec::new()),
            (
                bytes(b""),
                bytes(b""),
                vec![(Bytes::from("größe"), bytes(b"\x80")), (Bytes::from_static(b"h"), bytes(b"v"))],
            ),
            (bytes(b"\xfe"), bytes("日本\u{0}".as_bytes()), Vec::new()),
        ];
        for (key, value, headers) in cases {
            let read = ConsumedRecord { partition: 2, offset: u64::MAX, timestamp_ms: -5, key, value, headers };
            let mut line = Vec::new();
            Format::Json.write("t", &read, b"", &mut line);
            let text = String::from_utf8(line).unwrap();
            let record = json(text.trim_end()).unwrap().unwrap();
            let headers: Vec<(Bytes, Option<Bytes>)> =
                record.headers.into_iter().map(|(name, value)| (name.into(), value)).collect();
            let again = ConsumedRecord {
                partition: record.partition.unwrap(),
                timestamp_ms: record.timestamp_ms.unwrap(),
                key: record.key,
                value: record.value,
                headers,
                ..read.clone()
            };
            assert_eq!(again, read, "{text}");
        }
    }

    #[test]
    fn documents_that_say_something_else_are_refused_with_the_reason() {
        assert_eq!(json("  ").unwrap(), None);
        assert_eq!(json(r#"{"value":"v"}"#).unwrap(), Some(Record::new("v")));
        for (line, why) in [
            ("x", "no document in braces"),
            ("[1]", "no document in braces"),
            ("{x}", "key must be a string (byte 2)"),
            ("{}", "the value is missing"),
            (r#"{"valu":"v"}"#, "unknown field `valu`"),
            (r#"{"value":{"a":1}}"#, "there is an object in braces, where text in quotes is expected (byte 9)"),
            (r#"{"value":5}"#, "there is integer `5`, where text in quotes is expected"),
            (r#"{"value":"v","timestamp_ms":"5"}"#, "where a whole number is expected"),
            (r#"{"value":"v","headers":{"a":"b"}}"#, "there is an object in braces, where a list is expected"),
            (r#"{"value":"v","headers":[["n","x"]]}"#, "expected a header such as"),
            (r#"{"value":"v","value_hex":"00"}"#, "twice"),
            (r#"{"key":"k","key_hex":"00","value":"v"}"#, "twice"),
            (r#"{"value_hex":"0"}"#, "hexadecimal"),
            (r#"{"value_hex":"+f"}"#, "hexadecimal"),
            (r#"{"value":"v","headers":[{"name":"h"}]}"#, "value of header h is missing"),
        ] {
            let refused = json(line).expect_err(line);
            assert!(refused.contains(why), "{line}: {refused}");
        }
    }
}
