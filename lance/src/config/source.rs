//! The layers that a configuration is read from, and where each value came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::error::Problem;
use super::schema::{NODE_KEYS, SECTIONS};

/// What environment variables of the configuration start with. Other variables may too (`LANCE_ENDPOINT`): only the
/// double underscore between section and key makes one part of the configuration.
const ENV_PREFIX: &str = "LANCE_";

/// Key of the list of nodes, the only one that is not a single value.
const NODES: &str = "cluster.nodes";

/// Largest configuration file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where to read the configuration from, besides the built-in defaults.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    file: Option<PathBuf>,
    env: Vec<(String, String)>,
    flags: Vec<(String, String, String)>,
}

impl Sources {
    /// Reads this TOML file.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// Reads environment variables from pairs of name and value; those that are not `LANCE_SECTION__KEY` are ignored.
    #[must_use]
    pub fn env(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.env = variables.into_iter().collect();
        self
    }

    /// Sets one key, as a flag does; `flag` is what errors call it. Later calls win.
    #[must_use]
    pub fn set(mut self, key: impl Into<String>, value: impl Into<String>, flag: impl Into<String>) -> Self {
        self.flags.push((key.into(), value.into(), flag.into()));
        self
    }
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// A line of the file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Env(String),
    /// A flag of the command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the defaults"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// One value as it was given.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) text: String,
    pub(super) origin: Origin,
}

impl Setting {
    pub(super) fn refused(&self, key: &str, allowed: impl Into<String>) -> Problem {
        Problem::BadValue {
            key: key.to_owned(),
            value: self.text.clone(),
            allowed: allowed.into(),
            origin: self.origin.clone(),
        }
    }
}

/// One entry of `cluster.nodes` as it was given.
#[derive(Clone, Debug)]
pub(super) struct GivenNode {
    pub(super) fields: BTreeMap<String, Setting>,
    pub(super) origin: Origin,
}

/// All values that some layer gives; every key in it exists.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) keys: BTreeMap<String, Setting>,
    pub(super) nodes: Vec<GivenNode>,
}

/// Reads all layers in order, so that a later one replaces what an earlier one gave.
pub(super) fn read(sources: &Sources, problems: &mut Vec<Problem>) -> Given {
    let mut given = Given::default();
    if let Some(path) = &sources.file {
        match read_file(path) {
            Ok(text) => read_toml(&text, &|line| Origin::File { path: path.clone(), line }, &mut given, problems),
            Err(source) => problems.push(Problem::Unreadable { path: path.clone(), source }),
        }
    }
    for (name, value) in &sources.env {
        let path = name.strip_prefix(ENV_PREFIX).and_then(|rest| rest.split_once("__"));
        if let Some((section, key)) = path {
            let key = format!("{section}.{key}").to_ascii_lowercase();
            set(&key, value, Origin::Env(name.clone()), &mut given, problems);
        }
    }
    for (key, value, flag) in &sources.flags {
        set(key, value, Origin::Flag(flag.clone()), &mut given, problems);
    }
    given
}

fn read_file(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(std::io::Error::other(format!("larger than {MAX_FILE_BYTES} bytes")));
    }
    Ok(text)
}

/// One key from the environment or a flag.
fn set(key: &str, value: &str, origin: Origin, given: &mut Given, problems: &mut Vec<Problem>) {
    if key == NODES {
        // A list has no other short form than TOML's own: [{id = 1, client = "…", …}, …].
        return read_toml(&format!("{NODES} = {value}"), &|_| origin.clone(), given, problems);
    }
    if is_key(key) {
        given.keys.insert(key.to_owned(), Setting { text: value.to_owned(), origin });
    } else {
        problems.push(unknown(key, origin));
    }
}

/// A whole document.
fn read_toml(text: &str, at: &dyn Fn(usize) -> Origin, given: &mut Given, problems: &mut Vec<Problem>) {
    let origin = |position: usize| {
        let before = text.get(..position).unwrap_or(text);
        at(before.bytes().filter(|byte| *byte == b'\n').count() + 1)
    };
    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            let position = error.span().map_or(0, |span| span.start);
            problems.push(Problem::Syntax { message: error.message().to_owned(), origin: origin(position) });
            return;
        }
    };
    for (section, content) in table {
        let here = origin(section.span().start);
        let section = section.into_inner();
        if !SECTIONS.iter().any(|known| known.name == section) {
            problems.push(unknown(&section, here));
            continue;
        }
        let DeValue::Table(content) = content.into_inner() else {
            problems.push(Problem::BadValue {
                value: "a value".to_owned(),
                allowed: format!("a section, written [{section}]"),
                key: section.into_owned(),
                origin: here,
            });
            continue;
        };
        for (name, value) in content {
            let here = origin(name.span().start);
            let key = format!("{section}.{}", name.into_inner());
            if key == NODES {
                given.nodes = read_nodes(value.into_inner(), here, &origin, problems);
            } else if !is_key(&key) {
                problems.push(unknown(&key, here));
            } else {
                given.keys.insert(key, Setting { text: scalar(value.get_ref()), origin: here });
            }
        }
    }
}

fn read_nodes(
    value: DeValue<'_>,
    here: Origin,
    origin: &dyn Fn(usize) -> Origin,
    problems: &mut Vec<Problem>,
) -> Vec<GivenNode> {
    let DeValue::Array(entries) = value else {
        problems.push(Setting { text: scalar(&value), origin: here }.refused(NODES, "a list of nodes"));
        return Vec::new();
    };
    let mut nodes = Vec::new();
    for (at, entry) in entries.into_iter().enumerate() {
        let here = origin(entry.span().start);
        let DeValue::Table(table) = entry.into_inner() else {
            problems.push(Problem::BadValue {
                key: format!("{NODES}[{at}]"),
                value: "a value".to_owned(),
                allowed: "a table with id, client, peer and http".to_owned(),
                origin: here,
            });
            continue;
        };
        let mut fields = BTreeMap::new();
        for (name, value) in table {
            let origin = origin(name.span().start);
            let name = name.into_inner().into_owned();
            if NODE_KEYS.iter().any(|(known, _)| *known == name) {
                fields.insert(name, Setting { text: scalar(value.get_ref()), origin });
            } else {
                let known = NODE_KEYS.iter().map(|(known, _)| format!("{NODES}[{at}].{known}"));
                let key = format!("{NODES}[{at}].{name}");
                problems.push(Problem::UnknownKey { suggestion: nearest(&key, known), key, origin });
            }
        }
        nodes.push(GivenNode { fields, origin: here });
    }
    nodes
}

/// The text of a single value; for the other shapes a description, which no kind of value accepts.
fn scalar(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => number.to_string(),
            Err(_) => number.to_string(),
        },
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "<a list>".to_owned(),
        DeValue::Table(_) => "<a section>".to_owned(),
    }
}

fn is_key(key: &str) -> bool {
    known_keys().any(|known| known == key)
}

fn known_keys() -> impl Iterator<Item = String> {
    SECTIONS.iter().flat_map(|section| section.keys).map(|key| key.path()).chain([NODES.to_owned()])
}

/// `key` may also be a section.
fn unknown(key: &str, origin: Origin) -> Problem {
    let (known_section, name) = match key.rsplit_once('.') {
        Some((_, name)) => (None, name),
        None => (nearest(key, SECTIONS.iter().map(|section| section.name.to_owned())), key),
    };
    // A key in the wrong section is a likelier slip than a misspelt one that happens to look like another.
    let suggestion = known_section.or_else(|| home_of(name)).or_else(|| nearest(key, known_keys()));
    Problem::UnknownKey { key: key.to_owned(), origin, suggestion }
}

/// The full path of the one key that has this name, if there is just one.
fn home_of(name: &str) -> Option<String> {
    let mut homes = known_keys().filter(|key| key.rsplit('.').next() == Some(name));
    homes.next().filter(|_| homes.next().is_none())
}

/// The most similar of `known`, if it is similar enough to be what was meant.
fn nearest(key: &str, known: impl Iterator<Item = String>) -> Option<String> {
    /// Below this, suggestions are noise: `tls` is not `log`.
    const SIMILAR: f64 = 0.6;
    /// The same for the last part alone, so that a common section does not make `listen.tls` look like `listen.http`.
    const SIMILAR_NAME: f64 = 0.5;
    fn similarity(a: &str, b: &str) -> f64 {
        strsim::normalized_damerau_levenshtein(a, b)
    }
    fn name(key: &str) -> &str {
        key.rsplit('.').next().unwrap_or(key)
    }
    known
        .filter(|known| similarity(name(key), name(known)) >= SIMILAR_NAME)
        .map(|known| (similarity(key, &known), known))
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| known)
}
