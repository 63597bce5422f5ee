//! The `lance` command: the node itself and everything to work with a cluster.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    lance::cli::main()
}
