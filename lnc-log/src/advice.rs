//! What an operator does about an error of the operating system: the end of each message that a node may end with.

use std::fmt;
use std::io;

/// The page for whoever has a node that does not start.
pub const RUN_BOOK: &str = "docs/ops/does-not-start.md";

/// An error with what is to be done about it.
pub(crate) struct Advised<'a>(pub(crate) &'a io::Error);

impl fmt::Display for Advised<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(error) = self;
        match advice(error) {
            Some(advice) => write!(f, "{error}; {advice}"),
            None => write!(f, "{error}"),
        }
    }
}

/// `None`: the error says itself what to do, or there is nothing to do but to look at what it names.
fn advice(error: &io::Error) -> Option<&'static str> {
    use io::ErrorKind::{
        AlreadyExists, DirectoryNotEmpty, IsADirectory, NotADirectory, PermissionDenied, QuotaExceeded,
        ReadOnlyFilesystem, StorageFull,
    };
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    match error.kind() {
        StorageFull | QuotaExceeded => Some("make room in the data directory (docs/ops/disk-full.md)"),
        PermissionDenied => Some("give the user that runs the node access to the data directory and all in it"),
        ReadOnlyFilesystem => Some("mount the file system for writing; the kernel's log tells why it is not"),
        IsADirectory | NotADirectory | AlreadyExists | DirectoryNotEmpty => Some(
            "something else is in the place of a file or directory of the node: move it away (docs/ops/does-not-start.md)",
        ),
        _ => match error.raw_os_error() {
            Some(crate::disk::EIO) => Some("the disk fails: look at it, and replace it (docs/ops/disk-replaced.md)"),
            Some(EMFILE | ENFILE) => Some("raise the limit of open files of the process"),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_say_what_to_do() {
        for (code, told) in
            [(5, "replace it"), (13, "access"), (21, "move it away"), (24, "limit"), (28, "make room"), (30, "mount")]
        {
            let error = io::Error::from_raw_os_error(code);
            let text = Advised(&error).to_string();
            assert!(text.starts_with(&error.to_string()) && text.contains(told), "{text}");
        }
        assert_eq!(Advised(&io::Error::other("as it is")).to_string(), "as it is");
    }
}
