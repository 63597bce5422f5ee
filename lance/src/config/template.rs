//! The default configuration as a commented TOML file.

use std::fmt::Write;

use super::schema::SECTIONS;

/// A TOML file with every key at its default, and what each is for. Loading it gives the defaults.
pub fn default_toml() -> String {
    let mut text = String::from(
        "# Configuration of a LANCE node. Every key is shown at its default; what is left out keeps it.\n\
         # An environment variable LANCE_SECTION__KEY, such as LANCE_NODE__ID, wins over this file, and a flag over both.\n\
         # Sizes are bytes, or a number with KiB, MiB, GiB, TiB; durations have ms, s, m, h or d.\n",
    );
    for section in SECTIONS {
        text.push('\n');
        comment(&mut text, section.doc);
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "[{}]", section.name);
        for key in section.keys {
            comment(&mut text, key.doc);
            if let Some((low, high)) = key.range {
                let _ = writeln!(text, "# Allowed: {low} to {high}.");
            }
            if let Some(term) = key.fixed {
                let _ = writeln!(text, "# Stays {term}.");
            }
            let quote = if key.quoted { "\"" } else { "" };
            let _ = writeln!(text, "{} = {quote}{}{quote}", key.name, key.default);
        }
    }
    text
}

fn comment(text: &mut String, doc: &[&str]) {
    // The fences of an example mean something to rustdoc only.
    for line in doc.iter().filter(|line| !line.contains("```")) {
        let _ = writeln!(text, "#{}", line.trim_end());
    }
}
