//! The report as one page, without anything from elsewhere: figures, stalls, and throughput over time with the faults
//! marked on it.

use super::fault::ALL;
use super::ledger::{Column, Struck};
use super::report::{Report, Stall, Stalled, milliseconds};
use lance::cli::counted;
use std::fmt::Write as _;

/// Size of the timeline, in pixels, and the room around it.
const WIDTH: f64 = 1080.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 18.0;
/// Points of a line at most.
const POINTS: usize = 1080;

const STYLE: &str = "
  :root { color-scheme: light dark; --ink: #1c2430; --dim: #667085; --paper: #ffffff; --line: #d9dee7; --good: #12805c;
          --bad: #c0262d; --acked: #2563a8; --read: #c07a14; }
  @media (prefers-color-scheme: dark) {
    :root { --ink: #e7ebf2; --dim: #98a2b3; --paper: #14181f; --line: #303846; --good: #3fbf8f; --bad: #ff6b6b;
            --acked: #6aa9f0; --read: #f0b04a; } }
  body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
         max-width: 1180px; padding: 0 1rem; }
  h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
  .verdict { display: inline-block; padding: .1rem .7rem; border-radius: .3rem; color: #fff; font-weight: 600; }
  .PASS { background: #12805c; } .FAIL { background: #c0262d; }
  .dim { color: var(--dim); } .bad { color: var(--bad); font-weight: 600; }
  table { border-collapse: collapse; } th, td { text-align: right; padding: .2rem .8rem; border-bottom: 1px solid var(--line); }
  th:first-child, td:first-child, td.text, th.text { text-align: left; } th { color: var(--dim); font-weight: 500; }
  td, .number { font-variant-numeric: tabular-nums; }
  .figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .6rem; margin-top: 1rem; }
  .figures div { border: 1px solid var(--line); border-radius: .4rem; padding: .4rem .7rem; }
  .figures b { display: block; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
  svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--dim); }
  .scroll { overflow-x: auto; }
";

/// Text as it may stand in a page.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The page.
pub fn page(report: &Report) -> String {
    let mut out = String::new();
    let Report { verdict, seed, topic, partitions, producers, replicas, .. } = report;
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{verdict}: lnc-chaos live</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head><body>\n\
         <h1><span class=\"verdict {verdict}\">{verdict}</span> lnc-chaos live</h1>\n\
         <p class=\"dim\">seed {seed} · topic {} · {} · {} · read back from {} · {:.1} s</p>\n",
        escape(topic),
        counted((*partitions).into(), "partition"),
        counted((*producers).into(), "producer"),
        counted(*replicas as u64, "replica"),
        report.span_us as f64 / 1e6
    );
    list(&mut out, "Why it failed", &report.reasons);
    figures(&mut out, report);
    out += "<h2>Throughput, and what was done to the cluster</h2>\n";
    chart(&mut out, report);
    stalls(&mut out, report);
    nemesis(&mut out, &report.nemesis);
    list(&mut out, "Findings", &report.findings);
    list(&mut out, "Errors of clients", &report.errors);
    out += "</body></html>\n";
    out
}

fn list(out: &mut String, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(out, "<h2>{title}</h2><ul>");
    for line in lines {
        let _ = writeln!(out, "<li>{}</li>", escape(line));
    }
    *out += "</ul>\n";
}

fn figures(out: &mut String, report: &Report) {
    let counts = &report.counts;
    let good = [
        ("produced", counts.produced),
        ("acknowledged", counts.acknowledged),
        ("unknown outcome", counts.unknown),
        ("consumed", counts.consumed),
        ("faults", report.nemesis.len() as u64),
        ("reconnects", report.reconnects),
    ];
    let bad = [
        ("gaps", counts.gaps),
        ("duplicates", counts.duplicates),
        ("out of order", counts.out_of_order),
        ("phantoms", counts.phantoms),
        ("different bytes", counts.different),
        ("parse errors", counts.parse_errors),
        ("other findings", counts.other),
        ("producer errors", report.producer_errors),
        ("consumer errors", report.consumer_errors),
    ];
    *out += "<div class=\"figures\">\n";
    let good = good.into_iter().map(|(name, value)| (name, value, ""));
    let bad = bad.into_iter().map(|(name, value)| (name, value, if value > 0 { " class=\"bad\"" } else { "" }));
    for (name, value, class) in good.chain(bad) {
        let _ = writeln!(out, "<div><span class=\"dim\">{name}</span><b{class}>{}</b></div>", grouped(value));
    }
    *out += "</div>\n";
}

/// A number with its thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// Records per second, averaged over so many columns that the points fit.
fn rates(timeline: &[Column], column_us: u64, of: fn(&Column) -> u32) -> Vec<f64> {
    let width = timeline.len().div_ceil(POINTS).max(1);
    let seconds = |columns: usize| columns as f64 * column_us as f64 / 1e6;
    let sum = |columns: &[Column]| columns.iter().map(|column| f64::from(of(column))).sum::<f64>();
    timeline.chunks(width).map(|columns| sum(columns) / seconds(columns.len())).collect()
}

/// The least round number that is not below a number.
fn round_up(number: f64) -> f64 {
    let power = 10f64.powf(number.max(1.0).log10().floor());
    [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0]
        .map(|step| step * power)
        .into_iter()
        .find(|round| *round >= number)
        .unwrap_or(power)
}

/// The colour of a fault: by its place among all faults, so that it is the same in every report.
fn colour(fault: &str) -> String {
    let place = ALL.iter().position(|(_, name, ..)| *name == fault).unwrap_or(0);
    format!("hsl({} 65% 50%)", place * 360 / ALL.len())
}

fn chart(out: &mut String, report: &Report) {
    let span_us = (report.timeline.len() as u64 * report.column_us).max(1) as f64;
    let acknowledged = rates(&report.timeline, report.column_us, |column| column.acknowledged);
    let consumed = rates(&report.timeline, report.column_us, |column| column.consumed);
    let top = round_up(acknowledged.iter().chain(&consumed).fold(1.0, |most, rate| rate.max(most)));
    let x = |us: f64| LEFT + us / span_us * WIDTH;
    let y = |rate: f64| TOP + HEIGHT - rate / top * HEIGHT;
    let (width, height) = (LEFT + WIDTH + 16.0, TOP + HEIGHT + 34.0);
    let _ = writeln!(out, "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"throughput\">");
    for struck in &report.nemesis {
        let (begin, end) = (struck.begin_us as f64, struck.healed_us.map_or(span_us, |us| us as f64));
        let whole = struck.whole_us.map_or(span_us, |us| us as f64);
        let (fill, title) = (colour(struck.fault), escape(&format!("{}: {}", struck.fault, struck.what)));
        for (from, to, opacity) in [(begin, end, 0.30), (end, whole, 0.12)] {
            let wide = (x(to) - x(from)).max(1.0);
            let _ = writeln!(
                out,
                "<rect x=\"{:.1}\" y=\"{TOP}\" width=\"{wide:.1}\" height=\"{HEIGHT}\" fill=\"{fill}\" \
                 fill-opacity=\"{opacity}\"><title>{title}</title></rect>",
                x(from)
            );
        }
    }
    for part in 0..=4 {
        let rate = top * f64::from(part) / 4.0;
        let (at, label) = (y(rate), grouped(rate as u64));
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"var(--line)\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            LEFT + WIDTH,
            LEFT - 8.0,
            at + 4.0
        );
    }
    let seconds = span_us / 1e6;
    let step = round_up(seconds / 12.0);
    let mut second = 0.0;
    while second <= seconds {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{second} s</text>",
            x(second * 1e6),
            TOP + HEIGHT + 18.0
        );
        second += step;
    }
    for (rates, stroke) in [(&consumed, "var(--read)"), (&acknowledged, "var(--acked)")] {
        let place = |at: usize| x((at as f64 + 0.5) / rates.len() as f64 * span_us);
        let points: Vec<String> =
            rates.iter().enumerate().map(|(at, rate)| format!("{:.1},{:.1}", place(at), y(*rate))).collect();
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{stroke}\" stroke-width=\"1.4\" points=\"{}\"/>",
            points.join(" ")
        );
    }
    *out += "</svg>\n<p class=\"dim\">records per second: <span style=\"color:var(--acked)\">acknowledged</span>, \
             <span style=\"color:var(--read)\">handed to the consumer</span>";
    let mut named: Vec<&str> = report.nemesis.iter().map(|struck| struck.fault).collect();
    named.sort_unstable();
    named.dedup();
    for fault in named {
        let _ = write!(out, " · <span style=\"color:{}\">■</span> {fault}", colour(fault));
    }
    *out += "; lighter: taken back, not all nodes are ready yet</p>\n";
}

fn stalls(out: &mut String, report: &Report) {
    *out += "<h2>Longest gaps between acknowledgements</h2>\n<p class=\"dim\">median / worst over the repetitions of a \
             fault, while something waited: of the partition that was worst off; of the producer that was, with one \
             partition; and of all together</p>\n<table><tr><th>fault</th><th>count</th><th>partition</th><th>producer</th><th>any</th></tr>\n";
    let cell = |middle: u64, most: u64| format!("<td>{} / {}</td>", milliseconds(middle), milliseconds(most));
    for (fault, Stalled { count, struck, after }) in &report.stalls {
        for (name, count, Stall { median, max, .. }) in
            [(*fault, count.to_string(), struck), ("<span class=\"dim\">… taken back</span>", String::new(), after)]
        {
            let _ = writeln!(
                out,
                "<tr><td>{name}</td><td>{count}</td>{}{}{}</tr>",
                cell(median.partition_us, max.partition_us),
                cell(median.producer_us, max.producer_us),
                cell(median.any_us, max.any_us)
            );
        }
    }
    let longest = report.longest;
    let [partition, producer, any] = [longest.partition_us, longest.producer_us, longest.any_us].map(milliseconds);
    let _ = writeln!(
        out,
        "<tr><td>the whole run</td><td></td><td>{partition}</td><td>{producer}</td><td>{any}</td></tr></table>"
    );
}

fn nemesis(out: &mut String, struck: &[Struck]) {
    if struck.is_empty() {
        return;
    }
    *out += "<h2>Nemesis</h2>\n<div class=\"scroll\"><table><tr><th>begin</th><th class=\"text\">fault</th>\
             <th class=\"text\">who</th><th>taken back after</th><th>all ready after</th></tr>\n";
    for Struck { fault, what, begin_us, healed_us, whole_us } in struck {
        let after = |us: &Option<u64>| {
            us.map_or("never".to_owned(), |us| format!("{:.2} s", us.saturating_sub(*begin_us) as f64 / 1e6))
        };
        let _ = writeln!(
            out,
            "<tr><td>{:.2} s</td><td class=\"text\">{fault}</td><td class=\"text\">{}</td><td>{}</td><td>{}</td></tr>",
            *begin_us as f64 / 1e6,
            escape(what),
            after(healed_us),
            after(whole_us)
        );
    }
    *out += "</table></div>\n";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_round_and_numbers_are_grouped() {
        assert_eq!([0.0, 1.0, 2.2, 7.0, 101.0, 200.0].map(round_up), [1.0, 1.0, 3.0, 8.0, 150.0, 200.0]);
        assert_eq!([0, 999, 1000, 1234567].map(grouped), ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]);
    }

    #[test]
    fn rates_are_per_second_and_fit_into_the_picture() {
        let column = Column { acknowledged: 7, consumed: 0 };
        assert_eq!(rates(&[column, column], 100_000, |column| column.acknowledged), [70.0, 70.0]);
        let long = rates(&vec![column; 5000], 100_000, |column| column.acknowledged);
        assert!(long.len() <= POINTS && long.iter().all(|rate| (rate - 70.0).abs() < 1e-6));
    }

    #[test]
    fn words_of_others_do_not_become_markup() {
        assert_eq!(escape("<b> & \"x\""), "&lt;b&gt; &amp; &quot;x&quot;");
    }
}
