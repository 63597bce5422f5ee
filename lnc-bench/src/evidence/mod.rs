//! The evidence of a run of `./test.sh`: a folder with the thresholds, the environment, what came of every step, and the
//! reports of the gates. [`run`] makes its index, for programs and for people, and the section about it for
//! `docs/ops/BenchmarkChaosRunReports.md`.

mod figures;
mod show;

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::BenchError;
use crate::args::EvidenceArgs;
use figures::Figure;

/// A file of evidence that is larger is not read; the largest report has some hundred KB.
const LARGEST: u64 = 64 << 20;

/// A run of `./test.sh`.
#[derive(Debug, Serialize)]
pub(crate) struct Evidence {
    /// The folder's name: when the run began, in UTC.
    pub(crate) began: String,
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
    /// Names and values.
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) thresholds: Vec<Threshold>,
    pub(crate) steps: Vec<Step>,
}

/// A line of `gates.conf`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Threshold {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) reason: String,
}

/// What came of a step.
#[derive(Debug, Serialize)]
pub(crate) struct Step {
    pub(crate) name: String,
    /// "passed", "failed" or "skipped".
    pub(crate) verdict: String,
    pub(crate) seconds: f64,
    /// Why it was skipped.
    pub(crate) reason: String,
    /// Files, from the folder.
    pub(crate) files: Vec<String>,
    /// What a gate has measured.
    pub(crate) figures: Vec<Figure>,
}

/// Writes the index of a folder of evidence, and the section about it if that is wanted.
pub(crate) fn run(args: &EvidenceArgs) -> Result<(), BenchError> {
    let evidence = Evidence::read(&args.dir)?;
    let json = serde_json::to_string_pretty(&evidence).map_err(|error| failed(&args.dir, error))?;
    write(&args.dir.join("index.json"), &(json + "\n"))?;
    write(&args.dir.join("index.html"), &show::page(&evidence))?;
    let Some(path) = &args.append else { return Ok(()) };
    let document = read(path)?;
    let heading = show::heading(&evidence);
    if document.lines().any(|line| line == heading) {
        return Err(failed(path, format!("it has a section `{heading}` already")));
    }
    write(path, &format!("{}\n\n{}", document.trim_end(), show::section(&evidence)))
}

impl Evidence {
    fn read(dir: &Path) -> Result<Evidence, BenchError> {
        let name = dir.canonicalize().map_err(|error| failed(dir, error))?;
        let began = name.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
        let environment = fields(&read(&dir.join("environment.tsv"))?, 2)
            .into_iter()
            .map(|mut pair| (std::mem::take(&mut pair[0]), std::mem::take(&mut pair[1])))
            .collect();
        let path = dir.join("gates.conf");
        let thresholds = thresholds(&read(&path)?).map_err(|problem| failed(&path, problem))?;
        let path = dir.join("steps.tsv");
        let mut steps = Vec::new();
        for line in fields(&read(&path)?, 6) {
            steps.push(Step::read(dir, &line, &thresholds).map_err(|problem| failed(&path, problem))?);
        }
        let count = |verdict: &str| steps.iter().filter(|step| step.verdict == verdict).count();
        let (passed, failed, skipped) = (count("passed"), count("failed"), count("skipped"));
        Ok(Evidence { began, passed, failed, skipped, environment, thresholds, steps })
    }

    /// The gates: steps that the section tells of.
    fn gates(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| step.name.starts_with("gate: "))
    }
}

impl Step {
    /// From a line of `steps.tsv`: verdict, seconds, name, log, folder of reports, reason.
    fn read(dir: &Path, line: &[String], thresholds: &[Threshold]) -> Result<Step, String> {
        let [verdict, seconds, name, log, folder, reason] = line else { return Err("not six fields".into()) };
        if !["passed", "failed", "skipped"].contains(&verdict.as_str()) {
            return Err(format!("`{verdict}` is no verdict"));
        }
        let mut files: Vec<String> = Some(log.clone()).into_iter().filter(|log| !log.is_empty()).collect();
        // Names are told apart over all reports of a gate: one has what another is compared with.
        let mut reports = serde_json::Map::new();
        if !folder.is_empty() {
            let listed = fs::read_dir(dir.join(folder)).map_err(|error| format!("{folder}: {error}"))?;
            let mut paths: Vec<PathBuf> = listed.filter_map(|file| Some(file.ok()?.path())).collect();
            paths.sort();
            for path in paths.iter().filter(|path| path.is_file()) {
                let file = path.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
                if file.ends_with(".json") {
                    let text = read(path).map_err(|error| error.to_string())?;
                    let report: serde_json::Map<String, Value> =
                        serde_json::from_str(&text).map_err(|error| format!("{file}: {error}"))?;
                    reports.extend(report);
                }
                files.push(format!("{folder}/{file}"));
            }
        }
        let figures = figures::of(name, &Value::Object(reports), thresholds);
        let seconds = seconds.parse().map_err(|_| format!("`{seconds}` is no number of seconds"))?;
        Ok(Step { name: name.clone(), verdict: verdict.clone(), seconds, reason: reason.clone(), files, figures })
    }
}

/// The lines of a text, cut at tabs; lines with fewer fields get empty ones.
fn fields(text: &str, count: usize) -> Vec<Vec<String>> {
    let cut = |line: &str| {
        let mut fields: Vec<String> = line.splitn(count, '\t').map(str::to_owned).collect();
        fields.resize(count, String::new());
        fields
    };
    text.lines().filter(|line| !line.is_empty()).map(cut).collect()
}

/// The thresholds of `gates.conf`: lines NAME=NUMBER, and the comment above each. One without a reason, or without a
/// number, is an error.
fn thresholds(text: &str) -> Result<Vec<Threshold>, String> {
    let mut thresholds: Vec<Threshold> = Vec::new();
    let mut reason = String::new();
    // A block of lines shares the comment above it.
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix('#') {
            let comment = comment.trim();
            if !comment.starts_with("---") && !comment.starts_with("shellcheck") {
                reason = format!("{reason} {comment}").trim().to_owned();
            }
        } else if let Some((name, value)) = line.split_once('=') {
            let value = value.parse().map_err(|_| format!("{name}={value} is no number"))?;
            if reason.is_empty() {
                return Err(format!("{name} has no reason above it"));
            }
            thresholds.push(Threshold { name: name.to_owned(), value, reason: reason.clone() });
        } else if line.trim().is_empty() {
            reason.clear();
        } else {
            return Err(format!("`{line}` is neither a threshold nor a comment"));
        }
    }
    Ok(thresholds)
}

fn read(path: &Path) -> Result<String, BenchError> {
    let length = fs::metadata(path).map_err(|error| failed(path, error))?.len();
    if length > LARGEST {
        return Err(failed(path, format!("{length} bytes are more than a report has")));
    }
    fs::read_to_string(path).map_err(|error| failed(path, error))
}

fn write(path: &Path, text: &str) -> Result<(), BenchError> {
    fs::write(path, text).map_err(|error| failed(path, error))
}

fn failed(path: &Path, problem: impl ToString) -> BenchError {
    BenchError::File { path: path.display().to_string(), problem: problem.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that goes away.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("lnc-bench-evidence-{}-{name}", std::process::id()));
            fs::create_dir_all(path.join("02-gate")).unwrap();
            let folder = Folder(path);
            folder.put("gates.conf", include_str!("../../../gates.conf"));
            folder.put("environment.tsv", "commit\tabc\nprocessor\tone | two\n");
            folder.put(
                "steps.tsv",
                "passed\t1.5\tformat\tlogs/01.log\t\t\nfailed\t9.0\tgate: rate and latency\tlogs/02.log\t02-gate\t\n\
                 skipped\t0\tgate: chaos, one-way partition\tlogs/03.log\t\tneeds root\n",
            );
            folder.put("02-gate/wanted.json", "{\"wanted_records_per_second\": 1000}");
            folder.put(
                "02-gate/result.json",
                "{\"records_per_second\": 1500.5, \"errors\": {\"Timeout\": 2, \"Io\": 3}}",
            );
            folder.put("02-gate/leaders.json", "{\n  \"leader_changes\": 1\n}\n");
            folder.put("02-gate/report.html", "");
            folder
        }

        fn put(&self, file: &str, text: &str) {
            fs::write(self.0.join(file), text).unwrap();
        }

        fn run(&self, append: Option<&str>) -> Result<(), BenchError> {
            run(&EvidenceArgs { dir: self.0.clone(), append: append.map(|file| self.0.join(file)) })
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn every_threshold_is_a_number_with_a_reason() {
        let thresholds = thresholds(include_str!("../../../gates.conf")).unwrap();
        assert!(thresholds.len() > 10, "{thresholds:?}");
        for Threshold { name, reason, .. } in &thresholds {
            assert!(reason.len() > 20, "{name}: {reason}");
            assert_eq!(thresholds.iter().filter(|other| other.name == *name).count(), 1, "{name} is there twice");
        }
        for bad in ["a=1", "# why\na=x", "# why\n\na=1", "# why\nrm -rf x"] {
            assert!(super::thresholds(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_index_says_what_came_of_every_step() {
        let folder = Folder::new("index");
        folder.run(None).unwrap();
        let index: Value = serde_json::from_str(&read(&folder.0.join("index.json")).unwrap()).unwrap();
        assert_eq!((&index["passed"], &index["failed"], &index["skipped"]), (&1.into(), &1.into(), &1.into()));
        assert_eq!(index["steps"][1]["files"][2], "02-gate/report.html");
        let figures: Vec<(&str, f64, f64)> = index["steps"][1]["figures"]
            .as_array()
            .unwrap()
            .iter()
            .map(|figure| {
                let number = |name: &str| figure[name].as_f64().unwrap();
                (figure["what"].as_str().unwrap(), number("measured"), number("bound"))
            })
            .collect();
        let expected = [("rate", 1500.5, 1000.0), ("errors", 5.0, 0.0), ("changes of leadership", 1.0, 0.0)];
        assert_eq!(figures, expected);
        let page = read(&folder.0.join("index.html")).unwrap();
        for wanted in ["needs root", "02-gate/report.html", "changes of leadership", "bench_rate", "processor"] {
            assert!(page.contains(wanted), "{wanted}");
        }
    }

    #[test]
    fn a_section_is_appended_once_and_tells_of_what_failed() {
        let folder = Folder::new("section");
        assert!(folder.run(Some("reports.md")).is_err(), "there is no document");
        folder.put("reports.md", "# Reports\n");
        folder.run(Some("reports.md")).unwrap();
        let text = read(&folder.0.join("reports.md")).unwrap();
        for wanted in [
            "# Reports\n\n## ",
            "**FAILED**",
            "rate 1,500 records/s (at least 1,000); errors 5 (at most 0); changes of leadership 1 (at most 0)",
            "needs root",
            "one \\| two",
        ] {
            assert!(text.contains(wanted), "{wanted}\n{text}");
        }
        assert!(!text.contains("format"), "only gates are told of\n{text}");
        assert!(folder.run(Some("reports.md")).is_err(), "the same run twice");
    }

    #[test]
    fn evidence_that_lacks_something_is_an_error() {
        for (file, text) in [
            ("steps.tsv", "maybe\t1\tformat\t\t\t\n"),
            ("steps.tsv", "passed\tx\tformat\t\t\t\n"),
            ("steps.tsv", "passed\t1\tformat\t\tnot-there\t\n"),
            ("02-gate/leaders.json", "{"),
            ("gates.conf", "bench_rate=many\n"),
        ] {
            let folder = Folder::new("broken");
            folder.put(file, text);
            assert!(folder.run(None).is_err(), "{file}: {text}");
        }
    }
}
