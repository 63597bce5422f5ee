//! Evidence for people: the page that is its index, and the section of the document that keeps what runs have found.

use std::fmt::Write;

use super::figures::Figure;
use super::{Evidence, Step};
use crate::html::{self, names, table};
use crate::plot::{escape, number};

/// The page; links go to files in the same folder.
pub(super) fn page(evidence: &Evidence) -> String {
    let Evidence { began, passed, failed, skipped, .. } = evidence;
    let mut page = html::head("LANCE gates");
    _ = write!(page, "<p class=\"load\">{}: {passed} passed, {failed} failed, {skipped} skipped</p>", escape(began));
    page += "<h2>Steps</h2><div class=\"scroll\"><table class=\"steps\"><thead><tr><th>step</th><th>verdict</th>\
             <th>seconds</th><th>files</th></tr></thead><tbody>";
    for step in &evidence.steps {
        let link = |file: &String| {
            let name = file.rsplit('/').next().unwrap_or(file);
            format!("<a href=\"{}\">{}</a> ", escape(file), escape(name))
        };
        let links: String = step.files.iter().map(link).collect();
        let Step { name, seconds, .. } = step;
        _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{seconds:.1}</td><td>{links}</td></tr>",
            escape(name),
            escape(&verdict(step))
        );
    }
    page += "</tbody></table></div>";
    for step in evidence.steps.iter().filter(|step| !step.figures.is_empty()) {
        _ = write!(page, "<h3>{}</h3>", escape(&step.name));
        let rows = step.figures.iter().map(|figure| vec![figure.what.clone(), measured(figure), bound(figure)]);
        page += &table(&["figure", "measured", "threshold"], rows);
    }
    let thresholds = evidence.thresholds.iter();
    page += &names(
        "Thresholds",
        thresholds
            .map(|threshold| (threshold.name.as_str(), format!("{}. {}", number(threshold.value), threshold.reason))),
    );
    page += &names("Environment", evidence.environment.iter().map(|(name, value)| (name.as_str(), value.clone())));
    page + html::FOOT
}

/// The first line of a section.
pub(super) fn heading(evidence: &Evidence) -> String {
    let gates = |verdict: &str| evidence.gates().filter(|gate| gate.verdict == verdict).count();
    let (passed, failed, skipped) = (gates("passed"), gates("failed"), gates("skipped"));
    format!("## {}: {passed} gates passed, {failed} failed, {skipped} skipped", evidence.began)
}

/// The section about a run, in Markdown.
pub(super) fn section(evidence: &Evidence) -> String {
    let mut section = format!("{}\n\n|  |  |\n|---|---|\n", heading(evidence));
    for (name, value) in &evidence.environment {
        _ = writeln!(section, "| {} | {} |", cell(name), cell(value));
    }
    section += "\n| gate | verdict | found |\n|---|---|---|\n";
    for gate in evidence.gates() {
        let figures: Vec<String> = gate
            .figures
            .iter()
            .map(|figure| {
                let figure = (&figure.what, measured(figure), bound(figure));
                match figure {
                    (what, measured, bound) if bound.is_empty() => format!("{what} {measured}"),
                    (what, measured, bound) => format!("{what} {measured} ({bound})"),
                }
            })
            .collect();
        let name = gate.name.trim_start_matches("gate: ");
        _ = writeln!(section, "| {} | {} | {} |", cell(name), strong(&verdict(gate)), cell(&figures.join("; ")));
    }
    section
}

fn verdict(step: &Step) -> String {
    match step.verdict.as_str() {
        "failed" => "FAILED".into(),
        "skipped" => format!("skipped: {}", step.reason),
        verdict => verdict.into(),
    }
}

fn measured(figure: &Figure) -> String {
    format!("{} {}", number(figure.measured), figure.unit).trim_end().to_owned()
}

fn bound(figure: &Figure) -> String {
    let word = if figure.is_least { "at least" } else { "at most" };
    figure.bound.map_or(String::new(), |bound| format!("{word} {}", number(bound)))
}

/// A cell that leaps to the eye if something failed.
fn strong(verdict: &str) -> String {
    if verdict == "FAILED" { format!("**{verdict}**") } else { cell(verdict) }
}

/// Text of a cell of a table in Markdown.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
