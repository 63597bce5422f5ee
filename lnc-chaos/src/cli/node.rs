//! `lnc-chaos node`: what the program `lance` does, by the same code. So `live` needs no other program, and its nodes can
//! be made to make a mistake.

use std::ffi::OsString;
use std::process::ExitCode;

/// How to be a node.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Make this mistake of lnc-mutation
    #[cfg(feature = "mutations")]
    #[arg(long, value_parser = super::mutations::mutation)]
    mutation: Option<lnc_mutation::Mutation>,
    /// The arguments of `lance`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

/// Be the program `lance`, with these arguments.
pub(super) fn be(arguments: Arguments) -> ExitCode {
    // A node is one thread, this one, but for its metrics.
    #[cfg(feature = "mutations")]
    lnc_mutation::choose(arguments.mutation);
    lance::cli::main_with([OsString::from("lance")].into_iter().chain(arguments.words))
}
