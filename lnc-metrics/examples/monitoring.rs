//! Prints `docs/Monitoring.md`.

fn main() {
    print!("{}", lnc_metrics::document());
}
