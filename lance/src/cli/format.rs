//! How consumed records are written: the bare value, JSON, or a template.

use std::str::FromStr;

use lnc_client::ConsumedRecord;

/// How one record is written to standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// The value and a newline.
    Raw,
    /// One JSON object and a newline.
    Json,
    /// Text with places for parts of the record.
    Template(Vec<Piece>),
}

/// A part of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Text(Vec<u8>),
    Key,
    Value,
    Topic,
    Partition,
    Offset,
    Timestamp,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "raw" => Ok(Self::Raw),
            "json" => Ok(Self::Json),
            _ if text.contains('%') => template(text),
            _ => Err("must be raw, json, or a template such as '%k %v\\n'".to_owned()),
        }
    }
}

fn template(text: &str) -> Result<Format, String> {
    let text = unescape(text)?;
    let mut pieces = Vec::new();
    let mut literal = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            literal.push(byte);
            continue;
        }
        let piece = match bytes.next() {
            Some(b'%') => {
                literal.push(b'%');
                continue;
            }
            Some(b'k') => Piece::Key,
            Some(b'v') => Piece::Value,
            Some(b't') => Piece::Topic,
            Some(b'p') => Piece::Partition,
            Some(b'o') => Piece::Offset,
            Some(b'T') => Piece::Timestamp,
            _ => return Err("after % must follow k, v, t, p, o, T or another %".to_owned()),
        };
        if !literal.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut literal)));
        }
        pieces.push(piece);
    }
    if !literal.is_empty() {
        pieces.push(Piece::Text(literal));
    }
    Ok(Format::Template(pieces))
}

/// Resolves `\n`, `\r`, `\t`, `\0` and `\\`, which are hard to type in a shell.
pub(super) fn unescape(text: &str) -> Result<String, String> {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        plain.push(match c {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some('0') => '\0',
                Some('\\') => '\\',
                _ => return Err("after \\ must follow n, r, t, 0 or another \\".to_owned()),
            },
            c => c,
        });
    }
    Ok(plain)
}

impl Format {
    /// Appends one record to `out`.
    pub(super) fn write(&self, topic: &str, record: &ConsumedRecord, out: &mut Vec<u8>) {
        match self {
            Self::Raw => {
                out.extend_from_slice(record.value.as_deref().unwrap_or_default());
                out.push(b'\n');
            }
            Self::Json => write_json(topic, record, out),
            Self::Template(pieces) => {
                for piece in pieces {
                    match piece {
                        Piece::Text(text) => out.extend_from_slice(text),
                        Piece::Key => out.extend_from_slice(record.key.as_deref().unwrap_or_default()),
                        Piece::Value => out.extend_from_slice(record.value.as_deref().unwrap_or_default()),
                        Piece::Topic => out.extend_from_slice(topic.as_bytes()),
                        Piece::Partition => out.extend_from_slice(record.partition.to_string().as_bytes()),
                        Piece::Offset => out.extend_from_slice(record.offset.to_string().as_bytes()),
                        Piece::Timestamp => out.extend_from_slice(record.timestamp_ms.to_string().as_bytes()),
                    }
                }
            }
        }
    }
}

fn write_json(topic: &str, record: &ConsumedRecord, out: &mut Vec<u8>) {
    let ConsumedRecord { partition, offset, timestamp_ms, .. } = record;
    out.extend_from_slice(b"{\"topic\":");
    json_string(topic, out);
    let numbers = format!(",\"partition\":{partition},\"offset\":{offset},\"timestamp_ms\":{timestamp_ms},");
    out.extend_from_slice(numbers.as_bytes());
    json_member("key", record.key.as_deref(), out);
    out.push(b',');
    json_member("value", record.value.as_deref(), out);
    if !record.headers.is_empty() {
        out.extend_from_slice(b",\"headers\":[");
        for (at, (name, value)) in record.headers.iter().enumerate() {
            out.extend_from_slice(if at == 0 { b"{" } else { b",{" });
            json_member("name", Some(name), out);
            out.push(b',');
            json_member("value", value.as_deref(), out);
            out.push(b'}');
        }
        out.push(b']');
    }
    out.extend_from_slice(b"}\n");
}

/// `"name":"text"`; bytes that are not UTF-8 become `"name_hex":"ff00"`, so that no byte is lost.
fn json_member(name: &str, bytes: Option<&[u8]>, out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => out.extend_from_slice(b"\":null"),
        Some((_, Ok(text))) => {
            out.extend_from_slice(b"\":");
            json_string(text, out);
        }
        Some((bytes, Err(_))) => {
            out.extend_from_slice(b"_hex\":\"");
            for byte in bytes {
                out.extend([byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
            }
            out.push(b'"');
        }
    }
}

fn json_string(text: &str, out: &mut Vec<u8>) {
    // A string is always serializable, and a Vec takes every write.
    let _ = serde_json::to_writer(out, text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn record() -> ConsumedRecord {
        ConsumedRecord {
            partition: 2,
            offset: 40,
            timestamp_ms: 1_700_000_000_000,
            key: Some(Bytes::from_static(b"k\"1")),
            value: Some(Bytes::from_static(b"\xff\x00")),
            headers: vec![(Bytes::from_static(b"h"), None)],
        }
    }

    fn written(format: &str) -> Vec<u8> {
        let mut out = Vec::new();
        format.parse::<Format>().unwrap().write("t", &record(), &mut out);
        out
    }

    #[test]
    fn formats() {
        assert_eq!(written("raw"), b"\xff\x00\n");
        assert_eq!(written("%t/%p@%o 100%%\\t%k=%v %T\\n"), b"t/2@40 100%\tk\"1=\xff\x00 1700000000000\n");
        let line = written("json");
        let json: serde_json::Value = serde_json::from_slice(&line).unwrap();
        let expected = serde_json::json!({
            "topic": "t", "partition": 2, "offset": 40, "timestamp_ms": 1_700_000_000_000_i64,
            "key": "k\"1", "value_hex": "ff00", "headers": [{"name": "h", "value": null}],
        });
        assert_eq!(json, expected);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    }

    #[test]
    fn bad_formats_are_refused() {
        for bad in ["", "xml", "%x", "%", "%v\\q", "%v\\"] {
            assert!(bad.parse::<Format>().is_err(), "{bad}");
        }
    }
}
