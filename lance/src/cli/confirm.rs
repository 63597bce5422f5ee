//! The question before what cannot be taken back.

use std::io::{self, IsTerminal};

use super::error::CliError;

/// Asks whoever sits at the terminal, and fails unless the answer is `word`. Without a terminal there is nobody to ask:
/// `--yes` is the answer then, and `stakes` says to what.
pub(super) fn confirm(question: &str, word: &str, stakes: &str) -> Result<(), CliError> {
    if !io::stdin().is_terminal() {
        return Err(CliError::usage(format!("{stakes}; say --yes to do it")));
    }
    eprint!("{question} Type {word} to confirm: ");
    let mut answer = String::new();
    io::stdin()
        .read_line(&mut answer)
        .map_err(|error| CliError::failed(format!("cannot read the answer, nothing was done: {error}")))?;
    if answer.trim() == word {
        return Ok(());
    }
    Err(CliError::failed(format!("nothing was done: the answer was not `{word}`")))
}
