//! The command `lnc-chaos`.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    lnc_chaos::cli::main()
}
