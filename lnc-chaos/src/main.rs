//! The command `lnc-chaos`.
#![forbid(unsafe_code)]

/// A simulated second is some thousand small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    lnc_chaos::cli::main()
}
