//! The report as one HTML file that needs no other: figures, plots and the environment, for light and dark screens.

use std::fmt::Write;

use crate::plot::{Axis, Line, Scale, escape, number, plot};
use crate::report::{Latency, Report};

const STYLE: &str = "\
:root{color-scheme:light dark;--text:#1c2330;--soft:#5b6678;--back:#ffffff;--card:#f4f6f9;--rule:#d9dee6;--bad:#b3261e;--link:#0b57d0;
--c0:#1f6feb;--c1:#d9480f;--c2:#2b8a3e;--c3:#862e9c}
@media(prefers-color-scheme:dark){:root{--text:#e4e8ee;--soft:#9aa5b5;--back:#14181f;--card:#1d232c;--rule:#333c49;--bad:#ff8a80;--link:#8ab4f8;
--c0:#6cb0ff;--c1:#ff9a5c;--c2:#69db7c;--c3:#e599f7}}
*{box-sizing:border-box}
body{margin:0 auto;padding:24px 20px 60px;max-width:900px;background:var(--back);color:var(--text);
font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}
h1{font-size:24px;margin:0 0 4px}h2{font-size:20px;margin:44px 0 4px;padding-top:16px;border-top:1px solid var(--rule)}
h3{font-size:15px;margin:26px 0 6px}
a{color:var(--link);text-decoration:underline}a:hover,a:focus-visible{text-decoration-thickness:2px}
p.load{color:var(--soft);margin:0 0 14px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(160px,1fr));gap:10px;margin:14px 0}
.card{background:var(--card);border-radius:8px;padding:10px 14px}.card b{display:block;font-size:20px;font-weight:600}
.card span{color:var(--soft);font-size:13px}.bad b{color:var(--bad)}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:5px 10px;border-bottom:1px solid var(--rule);white-space:nowrap}
th{color:var(--soft);font-weight:500}th:first-child,td:first-child{text-align:left}
table.names td{text-align:left;white-space:normal}table.names td:first-child{color:var(--soft);width:130px}
table.steps td{white-space:normal;vertical-align:top}table.steps :is(th,td):last-child{text-align:left}table.steps td:last-child{overflow-wrap:anywhere;min-width:16em}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:12px}.grid{stroke:var(--rule)}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
.line.c0,.mark.c0{stroke:var(--c0)}.line.c1,.mark.c1{stroke:var(--c1)}.line.c2,.mark.c2{stroke:var(--c2)}.line.c3,.mark.c3{stroke:var(--c3)}
.mark{fill:var(--back);stroke-width:2}
.legend{margin:2px 0 0 74px;color:var(--soft);font-size:13px}.legend span{margin-right:18px;white-space:nowrap}
.legend i{display:inline-block;width:16px;height:3px;border-radius:2px;margin-right:6px;vertical-align:middle}
i.c0{background:var(--c0)}i.c1{background:var(--c1)}i.c2{background:var(--c2)}i.c3{background:var(--c3)}";

/// The end of every page.
pub(crate) const FOOT: &str = "</body></html>\n";

/// The start of a page.
pub(crate) fn head(title: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>{title}</title><style>{STYLE}</style></head><body>\
         <h1>{title}</h1>"
    )
}

/// The page for one report or several.
pub(crate) fn page(reports: &[Report]) -> String {
    let mut page = head("LANCE benchmark");
    if reports.len() > 1 {
        page += &overview(reports);
    }
    for report in reports {
        _ = write!(
            page,
            "<h2 id=\"{0}\">{0}</h2><p class=\"load\">{1}</p>",
            escape(&report.name),
            escape(&report.load)
        );
        page += &cards(report);
        page += &sweep(report);
        page += &latencies(report);
        page += &over_time(report);
        page += &servers(report);
        page += &ratios(report);
        page += &names("Environment", report.environment.rows().iter().map(|(name, value)| (*name, value.clone())));
    }
    page + FOOT
}

/// A table with a header, and rows of cells that are text.
pub(crate) fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let cells = |cells: Vec<String>, tag: &str| -> String {
        cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
    };
    let header = cells(header.iter().map(|cell| (*cell).to_owned()).collect(), "th");
    let rows: String = rows.map(|row| format!("<tr>{}</tr>", cells(row, "td"))).collect();
    format!("<div class=\"scroll\"><table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>")
}

/// A table of names and values.
pub(crate) fn names<'a>(title: &str, rows: impl Iterator<Item = (&'a str, String)>) -> String {
    let rows: String =
        rows.map(|(name, value)| format!("<tr><td>{}</td><td>{}</td></tr>", escape(name), escape(&value))).collect();
    format!("<h3>{title}</h3><table class=\"names\"><tbody>{rows}</tbody></table>")
}

fn overview(reports: &[Report]) -> String {
    let header =
        ["workload", "records/s", "MB/s", "p50 µs", "p99 µs", "p99.9 µs", "errors", "records per server CPU-s"];
    let rows = reports.iter().map(|report| {
        let figure =
            |of: fn(&Latency) -> f64| report.latency.as_ref().map_or("–".into(), |latency| number(of(latency)));
        vec![
            report.name.clone(),
            number(report.records_per_second),
            number(report.megabytes_per_second),
            figure(|latency| latency.p50_us),
            figure(|latency| latency.p99_us),
            figure(|latency| latency.p999_us),
            report.errors.values().sum::<u64>().to_string(),
            report.records_per_cpu_second.map_or("–".into(), number),
        ]
    });
    table(&header, rows)
}

fn cards(report: &Report) -> String {
    let mut cards = String::from("<div class=\"cards\">");
    let mut card = |figure: String, name: &str, class: &str| {
        _ = write!(cards, "<div class=\"card{class}\"><b>{}</b><span>{}</span></div>", escape(&figure), escape(name));
    };
    card(number(report.records_per_second), "records a second", "");
    card(
        format!("{} MB/s", number(report.megabytes_per_second)),
        if report.latency.is_some() { "of values" } else { "of batches" },
        "",
    );
    if let Some(latency) = &report.latency {
        card(format!("{} µs", number(latency.p50_us)), "p50 latency", "");
        card(format!("{} µs", number(latency.p99_us)), "p99 latency", "");
    }
    if let Some(latency) = &report.end_to_end {
        card(format!("{} µs", number(latency.p99_us)), "p99 from end to end", "");
    }
    if let Some(rate) = report.records_per_cpu_second {
        card(number(rate), "records per server CPU-second", "");
    }
    if let Some(rate) = report.records_per_generator_cpu_second {
        card(number(rate), "records per generator CPU-second", "");
    }
    card(format!("{} in {:.1} s", number(report.records as f64), report.seconds), "records measured", "");
    let errors: u64 = report.errors.values().sum();
    let kinds: Vec<String> = report.errors.iter().map(|(error, count)| format!("{count} × {error}")).collect();
    let name = if errors == 0 { "errors".into() } else { kinds.join(", ") };
    card(number(errors as f64), &name, if errors == 0 { "" } else { " bad" });
    if report.unsent > 0 {
        card(number(report.unsent as f64), "requests due and not sent", " bad");
    }
    cards + "</div>"
}

fn sweep(report: &Report) -> String {
    if report.steps.is_empty() {
        return String::new();
    }
    let header = ["offered records/s", "achieved", "p50 µs", "p99 µs", "sustained"];
    let mut steps = report.steps.clone();
    steps.sort_by(|one, other| one.offered.total_cmp(&other.offered));
    let rows = steps.iter().map(|step| {
        let sustained = if step.sustained { "yes" } else { "no" };
        vec![number(step.offered), number(step.achieved), number(step.p50_us), number(step.p99_us), sustained.into()]
    });
    let line = |name: &str, of: fn(&crate::sweep::Step) -> f64| Line {
        name: name.into(),
        points: steps.iter().map(|step| (step.offered, of(step))).collect(),
        marks: true,
    };
    let x = Axis { label: "offered records a second", scale: Scale::Linear };
    let latency = plot(
        &x,
        &Axis { label: "latency, µs", scale: Scale::Logarithmic },
        &[line("p50", |step| step.p50_us), line("p99", |step| step.p99_us)],
    );
    let achieved = plot(
        &x,
        &Axis { label: "records a second", scale: Scale::Linear },
        &[line("achieved", |step| step.achieved), line("offered", |step| step.offered)],
    );
    format!("<h3>Latency against rate</h3>{latency}<h3>Achieved against offered</h3>{achieved}{}", table(&header, rows))
}

fn latencies(report: &Report) -> String {
    let mut lines = Vec::new();
    let mut rows = Vec::new();
    for (name, latency) in report.latencies() {
        // The last point is the maximum, which no share lies above.
        let points =
            latency.curve.iter().copied().filter(|(quantile, _)| (1.0 - quantile) * latency.requests as f64 >= 0.5);
        let shown = match name {
            "latency" => "acknowledgement",
            "delivery" => "acknowledgement to delivery",
            name => name,
        };
        lines.push(Line { name: shown.into(), points: points.collect(), marks: false });
        let figures = latency.percentiles().map(|(_, figure)| number(figure));
        rows.push([vec![shown.to_owned()], figures.to_vec(), vec![number(latency.requests as f64)]].concat());
    }
    if lines.is_empty() {
        return String::new();
    }
    let header = ["latency, µs", "p50", "p90", "p95", "p99", "p99.9", "p99.99", "max", "requests"];
    let curve = plot(
        &Axis { label: "percentile", scale: Scale::Quantile },
        &Axis { label: "latency, µs", scale: Scale::Logarithmic },
        &lines,
    );
    format!("<h3>Latency by percentile</h3>{curve}{}", table(&header, rows.into_iter()))
}

fn over_time(report: &Report) -> String {
    let line = |name: &str, of: &dyn Fn(&crate::report::Sample) -> Option<f64>| Line {
        name: name.into(),
        points: report.series.iter().filter_map(|sample| Some((sample.at, of(sample)?))).collect(),
        marks: false,
    };
    let x = Axis { label: "seconds", scale: Scale::Linear };
    let throughput = plot(
        &x,
        &Axis { label: "records a second", scale: Scale::Linear },
        &[line("records a second", &|sample| Some(sample.records_per_second))],
    );
    let latency = plot(
        &x,
        &Axis { label: "latency, µs", scale: Scale::Logarithmic },
        &[
            line("p50", &|sample| sample.p50_us),
            line("p99", &|sample| sample.p99_us),
            line("max", &|sample| sample.max_us),
        ],
    );
    let mut text = format!("<h3>Throughput over time</h3>{throughput}");
    if !latency.is_empty() {
        _ = write!(text, "<h3>Latency over time</h3>{latency}");
    }
    text
}

fn servers(report: &Report) -> String {
    let header = ["process", "CPU-seconds", "share of a core", "peak memory, MB", "written, MB"];
    let row = |name: String, seconds: f64, memory: Option<u64>, written: Option<u64>| {
        let megabytes = |bytes: Option<u64>| bytes.map_or("–".into(), |bytes| number(bytes as f64 / 1e6));
        vec![
            name,
            format!("{seconds:.2}"),
            format!("{:.0} %", seconds / report.seconds * 100.0),
            megabytes(memory),
            megabytes(written),
        ]
    };
    let servers = report.servers.iter().map(|server| {
        row(format!("server {}", server.pid), server.cpu_seconds, Some(server.peak_memory), server.written)
    });
    let ended = report.ended_servers.iter().map(|pid| {
        let mut row = vec![format!("server {pid}, ended during the run")];
        row.resize(header.len(), "–".into());
        row
    });
    let own = row("generator".into(), report.generator_cpu_seconds, None, None);
    format!("<h3>What it cost</h3>{}", table(&header, servers.chain(ended).chain([own])))
}

fn ratios(report: &Report) -> String {
    let Some(limits) = &report.limits else { return String::new() };
    let rows = report.ratios.iter().map(|ratio| {
        vec![
            ratio.what.clone(),
            format!("{} {}", number(ratio.measured), ratio.unit),
            format!("{} {}", number(ratio.limit), ratio.unit),
            format!("{:.3}", ratio.ratio),
        ]
    });
    let limits = limits.to_string();
    let lines = limits
        .lines()
        .filter_map(|line| line.split_at_checked(17))
        .map(|(name, value)| (name.trim(), value.to_owned()));
    format!(
        "<h3>Against the machine</h3>{}{}",
        table(&["figure to limit", "measured", "limit", "ratio"], rows),
        names("What the machine can do", lines)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::Step;

    /// How bright a colour of the style is, as WCAG counts it.
    fn luminance(colour: &str) -> f64 {
        let channel = |at: usize| {
            let value = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap()) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
    }

    #[test]
    fn links_look_like_links_on_light_and_dark_screens() {
        assert!(STYLE.contains("a{color:var(--link);text-decoration:underline}"));
        let (light, dark) = STYLE.split_once("@media(prefers-color-scheme:dark)").unwrap();
        for theme in [light, dark] {
            let [link, text, back] = ["--link:", "--text:", "--back:"].map(|name| {
                let colour = theme.split_once(name).unwrap().1.split([';', '}']).next().unwrap();
                luminance(colour)
            });
            let contrast = (link.max(back) + 0.05) / (link.min(back) + 0.05);
            assert!(contrast >= 4.5 && link != text, "{contrast}");
        }
    }

    #[test]
    fn the_page_stands_alone_and_says_what_the_report_says() {
        let mut report = crate::report::tests::sample();
        report.name = "a <name>".into();
        report.errors.insert("NotLeader".into(), 3);
        report.steps = vec![Step { offered: 10.0, achieved: 9.9, p50_us: 1.0, p99_us: 2.0, sustained: true }];
        let page = page(&[report.clone(), report]);
        for wanted in ["50,000", "a &lt;name&gt;", "3 × NotLeader", "Latency against rate", "<svg", "server 7"] {
            assert!(page.contains(wanted), "{wanted}");
        }
        for unwanted in ["<name>", "http://", "https://", "<script", "<link", "url(", "NaN", "inf\""] {
            assert!(!page.contains(unwanted), "{unwanted}");
        }
    }
}
