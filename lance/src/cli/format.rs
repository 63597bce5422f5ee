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
    /// All headers.
    Headers,
    /// The value of the header of this name.
    Header(Vec<u8>),
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
    let mut rest = text.as_str();
    while let Some((literal, after)) = rest.split_once('%') {
        pieces.push(Piece::Text(literal.into()));
        let mut chars = after.chars();
        let piece = match chars.next() {
            Some('%') => Piece::Text(b"%".to_vec()),
            Some('k') => Piece::Key,
            Some('v') => Piece::Value,
            Some('t') => Piece::Topic,
            Some('p') => Piece::Partition,
            Some('o') => Piece::Offset,
            Some('T') => Piece::Timestamp,
            Some('h') => Piece::Headers,
            Some('{') => {
                let (name, after) = chars.as_str().split_once('}').ok_or("after %{NAME must follow a }")?;
                if name.is_empty() {
                    return Err("between %{ and } must stand the name of a header".to_owned());
                }
                chars = after.chars();
                Piece::Header(name.into())
            }
            _ => return Err("after % must follow k, v, t, p, o, T, h, {NAME} or another %".to_owned()),
        };
        pieces.push(piece);
        rest = chars.as_str();
    }
    pieces.push(Piece::Text(rest.into()));
    pieces.retain(|piece| !matches!(piece, Piece::Text(text) if text.is_empty()));
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
    /// Appends one record to `out`, with `null` for what is null.
    pub(super) fn write(&self, topic: &str, record: &ConsumedRecord, null: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Raw => {
                out.extend_from_slice(record.value.as_deref().unwrap_or(null));
                out.push(b'\n');
            }
            Self::Json => write_json(topic, record, out),
            Self::Template(pieces) => pieces.iter().for_each(|piece| piece.write(topic, record, null, out)),
        }
    }
}

impl Piece {
    fn write(&self, topic: &str, record: &ConsumedRecord, null: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Text(text) => out.extend_from_slice(text),
            Self::Key => out.extend_from_slice(record.key.as_deref().unwrap_or(null)),
            Self::Value => out.extend_from_slice(record.value.as_deref().unwrap_or(null)),
            Self::Topic => out.extend_from_slice(topic.as_bytes()),
            Self::Partition => out.extend_from_slice(record.partition.to_string().as_bytes()),
            Self::Offset => out.extend_from_slice(record.offset.to_string().as_bytes()),
            Self::Timestamp => out.extend_from_slice(record.timestamp_ms.to_string().as_bytes()),
            Self::Headers => {
                for (at, (name, value)) in record.headers.iter().enumerate() {
                    out.extend_from_slice(if at == 0 { b"" } else { b"," });
                    out.extend_from_slice(name);
                    out.push(b'=');
                    out.extend_from_slice(value.as_deref().unwrap_or(null));
                }
            }
            Self::Header(wanted) => {
                let named = record.headers.iter().find(|(name, _)| name == wanted);
                out.extend_from_slice(named.map_or(b"", |(_, value)| value.as_deref().unwrap_or(null)));
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
            headers: vec![
                (Bytes::from_static(b"h"), None),
                (Bytes::from_static(b"source"), Some(Bytes::from_static(b"web"))),
            ],
        }
    }

    fn written(format: &str) -> Vec<u8> {
        let mut out = Vec::new();
        format.parse::<Format>().unwrap().write("t", &record(), b"NULL", &mut out);
        out
    }

    #[test]
    fn formats() {
        assert_eq!(written("raw"), b"\xff\x00\n");
        assert_eq!(written("%t/%p@%o 100%%\\t%k=%v %T\\n"), b"t/2@40 100%\tk\"1=\xff\x00 1700000000000\n");
        assert_eq!(written("%h|%{source}|%{h}|%{none}|"), b"h=NULL,source=web|web|NULL||");
        let line = written("json");
        let json: serde_json::Value = serde_json::from_slice(&line).unwrap();
        let expected = serde_json::json!({
            "topic": "t", "partition": 2, "offset": 40, "timestamp_ms": 1_700_000_000_000_i64,
            "key": "k\"1", "value_hex": "ff00", "headers": [{"name": "h", "value": null}, {"name": "source", "value": "web"}],
        });
        assert_eq!(json, expected);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    }

    #[test]
    fn bad_formats_are_refused() {
        for bad in ["", "xml", "%x", "%", "%v\\q", "%v\\", "%{h", "%{}"] {
            assert!(bad.parse::<Format>().is_err(), "{bad}");
        }
    }
}
