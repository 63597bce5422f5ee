//! Where reports go, and where limits come from.

use std::fs;
use std::path::Path;

use crate::abuse::Abuse;
use crate::args::OutputArgs;
use crate::limits::{self, Limits};
use crate::report::{CSV_HEADER, Report, csv};
use crate::{BenchError, html};

/// What the machine can do, if the command line names a file or asks for a measurement.
pub(crate) fn limits(args: &OutputArgs) -> Result<Option<Limits>, BenchError> {
    if let Some(dir) = &args.calibrate {
        return Ok(Some(limits::calibrate(dir)?));
    }
    let Some(path) = &args.limits else { return Ok(None) };
    let failed = |problem: String| BenchError::File { path: path.display().to_string(), problem };
    let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let limits = serde_json::from_str(&text);
    limits.map(Some).map_err(|error| failed(format!("not the output of \"lnc-bench limits --json\": {error}")))
}

/// Prints a report to standard output, and writes the HTML report if there is to be one.
pub(crate) fn print(reports: &[Report], args: &OutputArgs) -> Result<(), BenchError> {
    if !args.json && !args.csv {
        reports.iter().for_each(|report| print!("{report}"));
    }
    print_rest(reports, args)
}

/// The same for reports whose text has been printed one by one.
pub(crate) fn print_rest(reports: &[Report], args: &OutputArgs) -> Result<(), BenchError> {
    let as_json = || match reports {
        [report] => json(report),
        reports => json(&reports),
    };
    if args.json {
        println!("{}", as_json());
    }
    if args.csv {
        println!("{CSV_HEADER}");
        reports.iter().for_each(|report| println!("{}", csv(report)));
    }
    if let Some(path) = &args.html {
        write(path, &html::page(reports))?;
    }
    if let Some(path) = &args.json_file {
        write(path, &as_json())?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), BenchError> {
    fs::write(path, text)
        .map_err(|error| BenchError::File { path: path.display().to_string(), problem: error.to_string() })
}

/// Prints what became of requests that ask for much to standard output.
pub(crate) fn print_abuse(abuse: &Abuse, as_json: bool) {
    if as_json {
        println!("{}", json(abuse));
    } else {
        print!("{abuse}");
    }
}

/// Prints limits to standard output.
pub(crate) fn print_limits(limits: &Limits, as_json: bool) {
    if as_json {
        println!("{}", json(limits));
    } else {
        print!("{limits}");
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("reports have only keys that are text")
}
