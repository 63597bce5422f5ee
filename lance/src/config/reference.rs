//! `docs/CONFIGURATION.md`, from the table of all keys.

use super::schema::{Key, NODE_KEYS, SECTIONS};
use crate::documents::documented;

/// Documentation as one paragraph; what stands in a fence stays as it is.
fn prose(doc: &[&str]) -> String {
    let mut text = String::new();
    let mut fenced = false;
    for line in doc.iter().map(|line| line.strip_prefix(' ').unwrap_or(line)) {
        let fence = line.starts_with("```");
        let gap = if fenced || fence || text.is_empty() { "\n" } else { " " };
        text += if line.is_empty() { "\n" } else { gap };
        text += line;
        fenced ^= fence;
    }
    text.trim().to_owned()
}

fn row(key: &Key) -> String {
    let default = if key.default.is_empty() { "empty".to_owned() } else { format!("`{}`", key.default) };
    let changes = match key.fixed {
        Some(term) => format!(" Stays {term}."),
        None => String::new(),
    };
    format!("| `{}` | {default} | {} | {}{changes} |\n", key.path(), key.allowed(), prose(key.doc))
}

#[test]
fn every_key_is_documented() {
    let mut page = String::new();
    for section in SECTIONS {
        page += &format!("\n## `[{}]`\n\n{}\n\n", section.name, prose(section.doc));
        page += "| key | default | allowed | meaning |\n|---|---|---|---|\n";
        page.extend(section.keys.iter().map(row));
        if section.name == "cluster" {
            page += "\nEach entry of `[[cluster.nodes]]` has all of these:\n\n| key | allowed |\n|---|---|\n";
            page.extend(NODE_KEYS.iter().map(|(name, allowed)| format!("| `{name}` | {allowed} |\n")));
        }
    }
    page += "\n";
    documented("docs/CONFIGURATION.md", "configuration", &page);
}
