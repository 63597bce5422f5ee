//! Figures as a report tells them.

use std::time::Duration;

/// How many there are, with the word in the form that the count asks for: `1 record`, `2 records`.
pub(crate) fn counted(count: u64, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}

/// A duration, such as `5 ms` or `2.5 s`.
pub(crate) fn time(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 1.0 { format!("{} ms", seconds * 1000.0) } else { format!("{seconds} s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_many() {
        assert_eq!([0, 1, 2].map(|count| counted(count, "key")), ["0 keys", "1 key", "2 keys"]);
    }

    #[test]
    fn times_have_a_unit() {
        let told = [1, 250, 1000, 2500].map(|ms| time(Duration::from_millis(ms)));
        assert_eq!(told, ["1 ms", "250 ms", "1 s", "2.5 s"]);
    }
}
