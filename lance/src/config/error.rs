//! What can be wrong with a configuration.

use std::fmt;
use std::path::PathBuf;

use super::source::Origin;

/// Everything that is wrong with a configuration; never empty.
#[derive(Debug, thiserror::Error)]
pub struct ConfigError {
    problems: Vec<Problem>,
}

impl ConfigError {
    pub(super) fn new(problems: Vec<Problem>) -> Self {
        debug_assert!(!problems.is_empty());
        Self { problems }
    }

    /// The problems, in the order in which they were found.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.problems.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// One thing that is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not TOML.
    #[error("not valid TOML: {message} (from {origin})")]
    Syntax {
        /// What the parser says.
        message: String,
        /// Where the text stands.
        origin: Origin,
    },
    /// A key that does not exist.
    #[error("unknown key `{key}` (from {origin}){}", did_you_mean(suggestion.as_deref()))]
    UnknownKey {
        /// Full path of the key.
        key: String,
        /// Where it was given.
        origin: Origin,
        /// The nearest key that exists, if one is near.
        suggestion: Option<String>,
    },
    /// A value that its key does not allow.
    #[error("`{key}` = `{value}` (from {origin}): must be {allowed}")]
    BadValue {
        /// Full path of the key.
        key: String,
        /// The value as given.
        value: String,
        /// What the key allows.
        allowed: String,
        /// Where it was given.
        origin: Origin,
    },
    /// A key that has no default is not given.
    #[error("`{key}` is missing (in {origin}): must be {allowed}")]
    Missing {
        /// Full path of the key.
        key: String,
        /// What the key allows.
        allowed: String,
        /// Where it should stand.
        origin: Origin,
    },
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map(|key| format!("; did you mean `{key}`?")).unwrap_or_default()
}
