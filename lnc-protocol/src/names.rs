//! The rules for topic names: what may be a directory name on every system, a metric label and a URL segment.

use thiserror::Error;

/// The longest topic name in bytes; leaves room for suffixes within the 255 bytes that file systems allow.
pub const MAX_NAME_LEN: usize = 249;

/// Which rule a topic name breaks.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NameError {
    /// The name has no characters.
    #[error("a topic name must not be empty")]
    Empty,
    /// The name is over [`MAX_NAME_LEN`].
    #[error("a topic name has at most {MAX_NAME_LEN} characters, this one has {len} bytes")]
    TooLong {
        /// The length found, in bytes.
        len: usize,
    },
    /// The name is `.` or `..`, which mean something else to a file system.
    #[error("a topic must not be named {name:?}")]
    Reserved {
        /// The name found.
        name: &'static str,
    },
    /// A character outside `[A-Za-z0-9._-]`.
    #[error("a topic name consists of [A-Za-z0-9._-]; {found:?} at byte {position} is not among them")]
    InvalidCharacter {
        /// The first offending character.
        found: char,
        /// Where it stands, in bytes from the start of the name.
        position: usize,
    },
}

/// Checks a topic name: 1 to 249 characters of `[A-Za-z0-9._-]`, neither `.` nor `..`.
pub fn validate(name: &str) -> Result<(), NameError> {
    match name {
        "" => return Err(NameError::Empty),
        "." => return Err(NameError::Reserved { name: "." }),
        ".." => return Err(NameError::Reserved { name: ".." }),
        _ => {}
    }
    if name.len() > MAX_NAME_LEN {
        return Err(NameError::TooLong { len: name.len() });
    }
    match name.char_indices().find(|(_, c)| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
        Some((position, found)) => Err(NameError::InvalidCharacter { found, position }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_at_the_edge_of_each_rule() {
        for good in ["a", "orders", "A-Z_0.9", "...", ".a", "-", &"x".repeat(249)] {
            assert_eq!(validate(good), Ok(()), "{good}");
        }
        assert_eq!(validate(""), Err(NameError::Empty));
        assert_eq!(validate("."), Err(NameError::Reserved { name: "." }));
        assert_eq!(validate(".."), Err(NameError::Reserved { name: ".." }));
        assert_eq!(validate(&"x".repeat(250)), Err(NameError::TooLong { len: 250 }));
        assert_eq!(validate("a/b"), Err(NameError::InvalidCharacter { found: '/', position: 1 }));
        assert_eq!(validate("naïve"), Err(NameError::InvalidCharacter { found: 'ï', position: 2 }));
        assert_eq!(validate("a\0"), Err(NameError::InvalidCharacter { found: '\0', position: 1 }));
    }
}
