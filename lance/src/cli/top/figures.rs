//! Numbers in few characters, for a screen that is read at a glance.

/// Three digits and a unit.
fn scaled(mut value: f64, units: &[&str], step: f64) -> String {
    let mut at = 0;
    while value >= 999.5 && at + 1 < units.len() {
        value /= step;
        at += 1;
    }
    let digits = if value >= 99.5 || value.fract() == 0.0 {
        0
    } else if value >= 9.95 {
        1
    } else {
        2
    };
    let unit = units[at];
    let gap = if unit.is_empty() { "" } else { " " };
    format!("{value:.digits$}{gap}{unit}")
}

/// A count or a rate, such as `12.3 k`.
pub(super) fn count(value: f64) -> String {
    scaled(value, &["", "k", "M", "G", "T"], 1000.0)
}

/// A size, such as `4.5 MiB`.
pub(super) fn bytes(value: f64) -> String {
    scaled(value, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"], 1024.0)
}

/// A time, such as `1.25 ms`.
pub(super) fn milliseconds(value: f64) -> String {
    format!("{} ms", scaled(value, &[""], 1.0))
}

/// All digits, in groups of three.
pub(super) fn whole(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// How long ago something was.
pub(super) fn ago(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..90 => format!("{seconds} s ago"),
        90..5400 => format!("{} min ago", seconds / 60),
        5400..129_600 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// The time of day, in UTC.
pub(super) fn clock(ms: u64) -> String {
    let seconds = ms / 1000 % 86_400;
    format!("{:02}:{:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_say_enough() {
        let counts =
            [(0.0, "0"), (7.0, "7"), (0.333, "0.33"), (12.34, "12.3"), (999.6, "1.00 k"), (12_345.0, "12.3 k")];
        for (value, text) in counts {
            assert_eq!(count(value), text);
        }
        assert_eq!(count(7.25e18), "7250000 T");
        assert_eq!((bytes(1023.0).as_str(), bytes(1536.0).as_str()), ("1.00 KiB", "1.50 KiB"));
        assert_eq!(milliseconds(1.256), "1.26 ms");
    }

    #[test]
    fn digits_and_times() {
        assert_eq!([whole(0), whole(999), whole(1000), whole(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [ago(0), ago(89_999), ago(600_000), ago(7_200_000)],
            ["0 s ago", "89 s ago", "10 min ago", "2 h ago"]
        );
        assert_eq!(ago(259_200_000), "3 days ago");
        assert_eq!(clock(1_700_000_000_000), "22:13:20 UTC");
    }
}
