//! The boundaries between the parts, read from the manifests and the sources: who depends on whom, what deterministic
//! code must not use, where unsafe code and files may be. The lines themselves are in `rules.rs`.

mod rules;
mod tokens;

use rules::{MANIFESTS, Manifest, UNSAFE_DECLARED, UNSAFE_FILE, WORDS, Words};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tokens::{Token, tokens, without_tests};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn manifest(path: &str) -> toml::Table {
    read(&root().join(path)).parse().unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn members() -> Vec<String> {
    let table = manifest("Cargo.toml");
    let members = table["workspace"]["members"].as_array().expect("a list of members");
    members.iter().filter_map(|member| member.as_str().map(str::to_owned)).collect()
}

/// Every source file of the workspace with its path from the root.
fn sources() -> BTreeMap<String, String> {
    let root = root();
    let mut found = BTreeMap::new();
    let mut folders: Vec<PathBuf> = members().iter().map(|member| root.join(member)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("an entry of the folder").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
                found.insert(name, read(&path));
            }
        }
    }
    found
}

/// The sources that end up in a library or a program: no tests, no modules that are for tests only.
fn shipped(sources: &BTreeMap<String, String>) -> BTreeMap<&str, Vec<Token<'_>>> {
    let mut kept = BTreeMap::new();
    let mut for_tests = BTreeSet::new();
    for (path, source) in sources.iter().filter(|(path, _)| path.contains("/src/")) {
        let (code, modules) = without_tests(&tokens(source));
        let folder = match path.strip_suffix("/mod.rs").or(path.strip_suffix("/lib.rs")) {
            Some(folder) => folder,
            None => path.strip_suffix("/main.rs").unwrap_or(path.trim_end_matches(".rs")),
        };
        for module in modules {
            for_tests.insert(format!("{folder}/{module}.rs"));
            for_tests.insert(format!("{folder}/{module}/mod.rs"));
        }
        kept.insert(path.as_str(), code);
    }
    kept.retain(|path, _| !for_tests.contains(*path));
    kept
}

/// What breaks a crate's rule in its manifest.
fn check_manifest(rule: &Manifest, table: &toml::Table) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut tables: Vec<(String, &toml::Table)> = Vec::new();
    for kind in ["dependencies", "build-dependencies"] {
        tables.extend(table.get(kind).and_then(toml::Value::as_table).map(|found| (kind.to_owned(), found)));
        for (target, settings) in table.get("target").and_then(toml::Value::as_table).into_iter().flatten() {
            let found = settings.get(kind).and_then(toml::Value::as_table);
            tables.extend(found.map(|found| (format!("target.{target}.{kind}"), found)));
        }
    }
    for (kind, found) in tables {
        for (key, settings) in found {
            let name = settings.get("package").and_then(toml::Value::as_str).unwrap_or(key);
            if !rule.own.contains(&name) && !rule.others.contains(&name) {
                wrong.push(format!("{}/Cargo.toml: [{kind}] {name} is not among what {0} may depend on", rule.name));
            }
        }
    }
    wrong
}

/// Dependencies that a crate's shipped sources never name.
fn check_use(rule: &Manifest, table: &toml::Table, shipped: &BTreeMap<&str, Vec<Token<'_>>>) -> Vec<String> {
    let folder = format!("{}/src/", rule.name);
    let is_shared = |path: &str| rules::SHARED.contains(&(rule.name, path));
    let own = shipped.iter().filter(|(path, _)| path.starts_with(&folder) || is_shared(path));
    let words: BTreeSet<&str> = own.flat_map(|(_, code)| code.iter().map(|token| token.text)).collect();
    let listed = table.get("dependencies").and_then(toml::Value::as_table);
    let unused = listed.into_iter().flat_map(toml::Table::keys).filter(|key| !words.contains(&*key.replace('-', "_")));
    unused.map(|key| format!("{}/Cargo.toml: {key} is not used", rule.name)).collect()
}

fn is_in(path: &str, parts: &[&str]) -> bool {
    parts.iter().any(|part| path == *part || (part.ends_with('/') && path.starts_with(part)))
}

/// What breaks a rule on words in one file.
fn check_words(rule: &Words, path: &str, code: &[Token<'_>]) -> Vec<String> {
    if !is_in(path, rule.parts) || is_in(path, rule.except) {
        return Vec::new();
    }
    let banned = code.iter().filter(|token| rule.banned.contains(&token.text));
    banned.map(|token| format!("{path}:{}: `{}`: {}", token.line, token.text, rule.reason)).collect()
}

/// Whether the tokens hold this sequence.
fn has(code: &[Token<'_>], sequence: &[&str]) -> bool {
    code.windows(sequence.len()).any(|window| window.iter().map(|token| token.text).eq(sequence.iter().copied()))
}

/// What breaks the rules on unsafe code in one file, tests included.
fn check_unsafe(path: &str, code: &[Token<'_>]) -> Vec<String> {
    let mut wrong = Vec::new();
    let lint = |level: &'static str| ["#", "!", "[", level, "(", "unsafe_code", ")", "]"];
    let is_root = path.ends_with("/src/lib.rs") || path.ends_with("/src/main.rs") || path.contains("/src/bin/");
    // A crate that forbids unsafe code cannot allow it for one module, so the one with such a module denies it.
    let level = if UNSAFE_FILE.starts_with(path.trim_end_matches("lib.rs")) { "deny" } else { "forbid" };
    if is_root && !has(code, &lint(level)) {
        wrong.push(format!("{path}: #![{level}(unsafe_code)] is missing"));
    }
    if path != UNSAFE_FILE {
        let found = code.iter().filter(|token| token.text == "unsafe");
        wrong.extend(found.map(|token| format!("{path}:{}: unsafe code outside of {UNSAFE_FILE}", token.line)));
    }
    let weakened = ["allow", "expect", "warn"].iter().any(|level| has(code, &[level, "(", "unsafe_code"]));
    if path != UNSAFE_DECLARED && weakened {
        wrong.push(format!("{path}: allows unsafe code"));
    }
    wrong
}

fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} boundaries crossed:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_crate_depends_on_what_it_may_and_no_more() {
    let ruled: BTreeSet<String> = MANIFESTS.iter().map(|rule| rule.name.to_owned()).collect();
    assert_eq!(ruled, members().into_iter().collect(), "crates with a rule, and members of the workspace");
    let sources = sources();
    let shipped = shipped(&sources);
    let check = |rule: &Manifest| {
        let table = manifest(&format!("{}/Cargo.toml", rule.name));
        [check_manifest(rule, &table), check_use(rule, &table, &shipped)].concat()
    };
    assert_none(&MANIFESTS.iter().flat_map(check).collect::<Vec<_>>());
}

#[test]
fn no_part_uses_what_it_must_not() {
    let sources = sources();
    let shipped = shipped(&sources);
    for part in WORDS.iter().flat_map(|rule| rule.parts.iter().chain(rule.except)) {
        assert!(shipped.keys().any(|path| is_in(path, &[part])), "{part} is in a rule but not in the workspace");
    }
    let check = |(path, code): (&&str, &Vec<Token<'_>>)| -> Vec<String> {
        WORDS.iter().flat_map(|rule| check_words(rule, path, code)).collect()
    };
    assert_none(&shipped.iter().flat_map(check).collect::<Vec<_>>());
}

/// Lines of a file, up to its tests, that put what `Debug` writes into a text. What is asserted is for developers.
fn check_messages(path: &str, source: &str) -> Vec<String> {
    let parts = ["lance/src/cli/", "lnc-bench/src/", "lnc-chaos/src/cli/", "lnc-client/src/"];
    if !is_in(path, &parts) || path.ends_with("/tests.rs") {
        return Vec::new();
    }
    let shipped = source.split("#[cfg(test)]\nmod ").next().unwrap_or(source);
    let is_debug =
        |line: &str| line.contains(":?}") && !line.trim_start().starts_with("//") && !line.contains("assert");
    let found = shipped.lines().enumerate().filter(|(_, line)| is_debug(line));
    found.map(|(at, _)| format!("{path}:{}: a message holds what Debug writes; say it in words", at + 1)).collect()
}

#[test]
fn messages_of_the_command_lines_are_words() {
    let wrong: Vec<String> = sources().iter().flat_map(|(path, source)| check_messages(path, source)).collect();
    assert_none(&wrong);
}

#[test]
fn unsafe_code_is_where_it_may_be() {
    let sources = sources();
    assert!(has(&tokens(&sources[UNSAFE_FILE]), &["unsafe"]), "{UNSAFE_FILE} needs its exemption");
    let check = |(path, source): (&String, &String)| check_unsafe(path, &tokens(source));
    assert_none(&sources.iter().flat_map(check).collect::<Vec<_>>());
}

#[test]
fn the_architecture_justifies_every_dependency() {
    let page = read(&root().join("docs/ARCHITECTURE.md"));
    let table = page.split("## Dependencies").nth(1).expect("a section on dependencies");
    let table = table.split("\n## ").next().unwrap_or(table);
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let justified: BTreeSet<&str> = rows.collect();
    let workspace = manifest("Cargo.toml");
    let listed = workspace["workspace"]["dependencies"].as_table().expect("a table of dependencies");
    let others: BTreeSet<&str> = listed.keys().map(String::as_str).filter(|name| !name.starts_with("lnc-")).collect();
    assert_eq!(justified, others, "dependencies in docs/ARCHITECTURE.md, and in Cargo.toml");
}

/// Files that a page names in backticks by their path from the root, and those of Markdown links.
fn named_files(page: &str) -> Vec<&str> {
    let spans = page.split('`').skip(1).step_by(2);
    let tops = ["lance/", "lnc-", "docs/"];
    let paths = spans.filter(|span| span.contains('/') && tops.iter().any(|top| span.starts_with(top)));
    let links = page.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
    paths.chain(links.filter(|link| !link.is_empty() && !link.contains("://"))).collect()
}

#[test]
fn the_pages_name_files_that_exist() {
    for page in ["README.md", "docs/ARCHITECTURE.md", "docs/OPERATIONS.md"] {
        let text = read(&root().join(page));
        let folder = root().join(page).parent().expect("a folder").to_owned();
        let gone = |name: &&str| !root().join(name).exists() && !folder.join(name).exists();
        let gone: Vec<&str> = named_files(&text).into_iter().filter(gone).collect();
        assert!(gone.is_empty(), "{page} names {gone:?}");
    }
}

/// The checks themselves: each finds what it is there to find.
mod checks {
    use super::*;

    fn words_in(path: &str, source: &str) -> usize {
        let all = tokens(source);
        let (code, _) = without_tests(&all);
        WORDS.iter().map(|rule| check_words(rule, path, &code).len()).sum()
    }

    #[test]
    fn a_clock_a_hash_map_or_a_thread_in_deterministic_code_is_found() {
        for bad in [
            "let now = std::time::Instant::now();",
            "use std::{collections::{BTreeMap, HashMap}, fmt};",
            "use std::time::SystemTime as Calendar;",
            "std::thread::spawn(work);",
            "use tokio::sync::oneshot;",
            "async fn step() {}",
            "static COUNT: AtomicU64 = AtomicU64::new(0);",
            "let seed = rand::random();",
            "use std::net::TcpStream;",
            "#[cfg(not(test))] use std::fs;",
        ] {
            for path in ["lnc-raft/src/raft.rs", "lnc-replication/src/shard.rs", "lnc-broker/src/log/apply.rs"] {
                assert!(words_in(path, bad) > 0, "{bad} in {path}");
            }
        }
    }

    #[test]
    fn what_is_allowed_is_not_reported() {
        for good in [
            "// tokio would be wrong here\nlet text = \"Instant\";",
            "fn name() -> &'static str { \"thread\" }",
            "#[cfg(test)] mod tests { use std::collections::HashMap; }",
            "let instant = 3; use std::collections::BTreeMap; use std::time::Duration;",
        ] {
            assert_eq!(words_in("lnc-raft/src/raft.rs", good), 0, "{good}");
        }
        assert_eq!(words_in("lnc-replication/src/peers.rs", "use tokio::net::TcpStream;"), 0);
        assert_eq!(words_in("lance/src/server.rs", "use std::time::Instant;"), 0);
    }

    #[test]
    fn a_file_opened_in_the_wrong_place_is_found() {
        for path in ["lnc-log/src/segment/store.rs", "lance/src/server.rs", "lnc-metrics/src/lib.rs"] {
            assert!(words_in(path, "std::fs::remove_dir_all(path)?;") > 0, "{path}");
        }
        assert_eq!(words_in("lnc-log/src/disk/files.rs", "use std::fs::File;"), 0);
    }

    #[test]
    fn a_dependency_too_many_is_found() {
        let rule = Manifest { name: "core", own: &["lnc-protocol"], others: &["bytes"] };
        let count = |text: &str| check_manifest(&rule, &text.parse().unwrap()).len();
        assert_eq!(count("[dependencies]\nbytes.workspace = true\nlnc-protocol.workspace = true"), 0);
        assert_eq!(count("[dependencies]\ntokio.workspace = true"), 1);
        assert_eq!(count("[dependencies]\nbytes = { package = \"tokio\", version = \"1\" }"), 1);
        assert_eq!(count("[target.'cfg(unix)'.dependencies]\nlnc-log.workspace = true"), 1);
        assert_eq!(count("[build-dependencies]\ncc = \"1\""), 1);
        assert_eq!(count("[dev-dependencies]\nproptest = \"1\""), 0);
    }

    #[test]
    fn a_dependency_without_use_is_found() {
        let rule = Manifest { name: "core", own: &[], others: &[] };
        let table = "[dependencies]\nio-uring = \"1\"\nserde = \"1\"".parse().unwrap();
        let count =
            |source: &str| check_use(&rule, &table, &BTreeMap::from([("core/src/lib.rs", tokens(source))])).len();
        assert_eq!(count("use io_uring::IoUring; #[derive(serde::Serialize)] struct X;"), 0);
        assert_eq!(count("use io_uring::IoUring; // serde"), 1);
        assert_eq!(count(""), 2);
    }

    #[test]
    fn unsafe_code_and_missing_lints_are_found() {
        let count = |path: &str, source: &str| check_unsafe(path, &tokens(source)).len();
        assert_eq!(count("lnc-raft/src/lib.rs", "#![forbid(unsafe_code)]"), 0);
        assert_eq!(count("lnc-raft/src/lib.rs", "//! #![forbid(unsafe_code)]"), 1);
        assert_eq!(count("lnc-raft/src/lib.rs", "#![deny(unsafe_code)]"), 1);
        assert_eq!(count("lnc-log/src/lib.rs", "#![deny(unsafe_code)]"), 0);
        assert_eq!(count("lnc-log/src/lib.rs", ""), 1);
        assert_eq!(count("lnc-log/src/journal/mod.rs", "let x = unsafe { read(p) };"), 1);
        assert_eq!(count("lance/tests/some.rs", "unsafe impl Send for X {}"), 1);
        assert_eq!(count("lnc-log/src/journal/mod.rs", "#[allow(unsafe_code)] mod fast;"), 1);
        assert_eq!(count(UNSAFE_FILE, "unsafe { queue.push(&entry) };"), 0);
    }

    #[test]
    fn a_message_for_developers_is_found() {
        let count = |source: &str| check_messages("lance/src/cli/top/mod.rs", source).len();
        assert_eq!(count("format!(\"not within {after:?}\")\nformat!(\"{:?}\", codec)"), 2);
        assert_eq!(count("/// {:?}\nassert!(ok, \"{x:?}\");\n#[cfg(test)]\nmod tests { format!(\"{x:?}\") }"), 0);
        assert!(check_messages("lnc-raft/src/raft.rs", "format!(\"{x:?}\")").is_empty());
    }

    #[test]
    fn files_that_a_page_names_are_found() {
        let page = "See `lance/src/x.rs`, `acks`, `a/b` and [this](docs/Y.md#part) or [that](https://example.org).";
        assert_eq!(named_files(page), ["lance/src/x.rs", "docs/Y.md"]);
    }

    #[test]
    fn modules_for_tests_are_not_shipped() {
        let source = |path: &str, text: &str| (path.to_owned(), text.to_owned());
        let sources = BTreeMap::from([
            source("a/src/lib.rs", "mod b; #[cfg(test)] mod tests;"),
            source("a/src/b.rs", "#[cfg(test)] mod samples; mod c;"),
            source("a/src/b/c.rs", ""),
            source("a/src/b/samples.rs", ""),
            source("a/src/tests.rs", ""),
            source("a/tests/all.rs", ""),
        ]);
        let shipped: Vec<&str> = shipped(&sources).into_keys().collect();
        assert_eq!(shipped, ["a/src/b.rs", "a/src/b/c.rs", "a/src/lib.rs"]);
    }
}
