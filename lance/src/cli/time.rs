//! Points in time as people write them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::config::units::parse_duration;

/// Milliseconds since 1970 from the number itself, from RFC 3339 such as `2026-05-01T12:00:00Z` or
/// `2026-05-01T14:00:00.250+02:00`, from a date, which stands for its midnight in UTC, or from `-1h` for an hour before
/// `now`.
pub(super) fn parse_time(text: &str, now: SystemTime) -> Option<i64> {
    if let Ok(ms) = text.parse::<i64>() {
        return Some(ms);
    }
    if let Some(ago) = text.strip_prefix('-') {
        let since_1970 = now.duration_since(UNIX_EPOCH).ok()?;
        return i64::try_from(since_1970.checked_sub(parse_ago(ago)?)?.as_millis()).ok();
    }
    let (date, rest) = text.split_at_checked(10)?;
    let mut date = date.split('-');
    let (year, month, day) = (
        digits(date.next()?, 4)?,
        digits(date.next()?, 2)?,
        digits(date.next()?, 2).filter(|_| date.next().is_none())?,
    );
    let rest = if rest.is_empty() { "T00:00:00Z" } else { rest };
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let zone_at = rest.find(['Z', 'z', '+', '-'])?;
    let (time, zone) = rest.split_at(zone_at);
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut time = time.split(':');
    let (hour, minute, second) = (
        digits(time.next()?, 2)?,
        digits(time.next()?, 2)?,
        digits(time.next()?, 2).filter(|_| time.next().is_none())?,
    );
    let in_range = (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !in_range {
        return None;
    }
    let seconds = ((days_since_1970(year, month, day) * 24 + hour) * 60 + minute) * 60 + second - zone_seconds(zone)?;
    Some(seconds * 1000 + milliseconds(fraction)?)
}

/// Several lengths of time one after the other, such as `1h30m`; beside those of a configuration also weeks.
fn parse_ago(text: &str) -> Option<Duration> {
    const WEEK: Duration = Duration::from_secs(7 * 86_400);
    let (mut sum, mut rest) = (Duration::ZERO, text);
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit())?;
        let end = rest[unit_at..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |len| unit_at + len);
        let (part, after) = rest.split_at(end);
        let length = match part.strip_suffix('w') {
            Some(weeks) => WEEK.checked_mul(weeks.parse().ok()?)?,
            None => parse_duration(part)?,
        };
        (sum, rest) = (sum.checked_add(length)?, after);
    }
    (!text.is_empty()).then_some(sum)
}

/// A number of exactly `count` digits.
fn digits(text: &str, count: usize) -> Option<i64> {
    (text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

/// The first three digits after the point; what follows them is cut off.
fn milliseconds(fraction: &str) -> Option<i64> {
    if fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    fraction.bytes().chain(*b"00").take(3).try_fold(0, |ms, byte| Some(ms * 10 + i64::from(byte - b'0')))
}

fn zone_seconds(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (sign, rest) = zone.split_at_checked(1)?;
    let (hours, minutes) = rest.split_once(':')?;
    let (hours, minutes) = (digits(hours, 2).filter(|hours| *hours < 24)?, digits(minutes, 2).filter(|m| *m < 60)?);
    let seconds = (hours * 60 + minutes) * 60;
    Some(if sign == "-" { -seconds } else { seconds })
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let leap_days_before = |year: i64| (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400;
    let years = (year - 1970) * 365 + leap_days_before(year) - leap_days_before(1970);
    years + (1..month).map(|month| days_in_month(year, month)).sum::<i64>() + day - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let cases = [
            ("0", 0),
            ("1700000000123", 1_700_000_000_123),
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:34:56Z", 951_827_696_000),
            ("2023-11-14T22:13:20.123Z", 1_700_000_000_123),
            ("2023-11-14t22:13:20.1239z", 1_700_000_000_123),
            ("2023-11-15 00:13:20.1+02:00", 1_700_000_000_100),
            ("2023-11-14T16:43:20-05:30", 1_700_000_000_000),
            ("1969-12-31T23:59:59Z", -1_000),
            ("2023-11-14", 1_699_920_000_000),
            ("-1h", 6_400_000),
            ("-500ms", 9_999_500),
            ("-1h30m", 4_600_000),
        ];
        let now = UNIX_EPOCH + Duration::from_secs(10_000);
        for (text, ms) in cases {
            assert_eq!(parse_time(text, now), Some(ms), "{text}");
        }
        let bad = [
            "",
            "now",
            "2023-11-1",
            "2023-02-29",
            "-",
            "-1w",
            "-1x",
            "-h",
            "-1h30",
            "-99999999999w",
            "-3h",
            "2023-11-14T22:13:20",
            "2023-13-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2023-11-14T24:00:00Z",
            "2023-11-14T22:13Z",
            "2023-11-14T22:13:20.Z",
            "2023-11-14T22:13:20+2:00",
            "2023-11-14-1T22:13:20Z",
            "日本日本日本日本日本T22:13:20Z",
        ];
        assert_eq!(parse_time("-1w", now + 60 * 10_080 * Duration::from_secs(1)), Some(10_000_000));
        for text in bad {
            assert_eq!(parse_time(text, now), None, "{text}");
        }
    }
}
