//! The command `lnc-chaos`.
#![forbid(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// A simulated second is some thousand small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What the allocator reads before `main` to know when to give memory back to the kernel.
const PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";

fn main() -> ExitCode {
    keep_memory();
    lnc_chaos::cli::main()
}

/// Begin anew with an allocator that keeps what is freed: one simulation is followed by the next, which needs as much, and
/// memory that comes from the kernel again has to be cleared again. Where that does not work it is only slower.
fn keep_memory() {
    let mut arguments = std::env::args_os().skip(1);
    let simulates = arguments.next().is_some_and(|command| command == "sim" || command == "mutations");
    if !simulates || std::env::var_os(PURGE_DELAY).is_some() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        let _ = Command::new(program).args(std::env::args_os().skip(1)).env(PURGE_DELAY, "-1").exec();
    }
}
