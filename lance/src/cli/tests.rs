//! Tests of the arguments and of the help texts.

use clap::error::ErrorKind;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_command_line_is_documented() {
    crate::documents::documented("docs/CLI.md", "lance", &crate::documents::command_line(Cli::command()));
}

#[test]
fn help_texts_are_wrapped_once() {
    crate::documents::wrapped_once(Cli::command());
}

/// Every command with its full name, depth first.
fn commands() -> Vec<(String, clap::Command)> {
    fn walk(name: &str, command: &clap::Command, all: &mut Vec<(String, clap::Command)>) {
        all.push((name.to_owned(), command.clone()));
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            walk(&format!("{name} {}", sub.get_name()), sub, all);
        }
    }
    let mut command = Cli::command();
    command.build();
    let mut all = Vec::new();
    walk("lance", &command, &mut all);
    all
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_help_with_examples_that_parse() {
    for (name, command) in commands() {
        assert!(command.get_about().is_some(), "{name} does not say what it is for");
        if name.starts_with("lance config ") {
            continue;
        }
        let help = command.get_after_help().unwrap_or_else(|| panic!("{name} has no examples")).to_string();
        let examples: Vec<&str> =
            help.lines().filter(|line| line.starts_with("  ") && line.contains("lance ")).collect();
        assert!(!examples.is_empty(), "{name}: {help}");
        for example in examples {
            let start = example.find("lance ").unwrap();
            let words: Vec<String> = shell_words(&example[start..]);
            if let Err(error) = Cli::try_parse_from(&words) {
                panic!("{name}: example {words:?} does not parse: {error}");
            }
        }
    }
}

/// The words of a command as a shell sees them, up to a pipe, a redirection or blanks that set off an explanation.
fn shell_words(line: &str) -> Vec<String> {
    let line = line.split(" > ").next().unwrap();
    let line = line.split(" | ").next().unwrap();
    let line = line.split("   ").next().unwrap();
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words
}

#[test]
fn every_option_says_what_it_does() {
    for (name, command) in commands() {
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            assert!(argument.get_help().is_some(), "{name}: {} has no help", argument.get_id());
        }
    }
}

#[test]
fn help_names_every_exit_code() {
    let help = Cli::command().render_help().to_string();
    for code in 0..=5 {
        assert!(help.contains(&format!("\n  {code}  ")), "{help}");
    }
}

#[test]
fn endpoints_are_split_and_have_a_default() {
    let cli = parse("lance topic list").unwrap();
    assert_eq!(cli.global.endpoint, ["127.0.0.1:1992", "127.0.0.1:2002", "127.0.0.1:2012"]);
    let cli = parse("lance topic list --endpoint a:1,b:2").unwrap();
    assert_eq!(cli.global.endpoint, ["a:1", "b:2"]);
    let cli = parse("lance topic list --endpoint localhost,[::1]").unwrap();
    assert_eq!(cli.global.endpoint, ["localhost:1992", "[::1]:1992"]);
    let cli = parse("lance --endpoint a:1 -o json cluster status").unwrap();
    assert_eq!((cli.global.endpoint.len(), cli.global.output), (1, OutputFormat::Json));
}

#[test]
fn wrong_usage_is_refused() {
    let cases = [
        ("lance", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
        ("lance topic", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
        ("lance launch", ErrorKind::InvalidSubcommand),
        ("lance topic create", ErrorKind::MissingRequiredArgument),
        ("lance topic create t --partitions 0", ErrorKind::ValueValidation),
        ("lance topic create t --max-age 7", ErrorKind::ValueValidation),
        ("lance topic create t --max-bytes much", ErrorKind::ValueValidation),
        ("lance produce t --acks all", ErrorKind::InvalidValue),
        ("lance produce t --batch-bytes 1GiB", ErrorKind::ValueValidation),
        ("lance consume t --from noon", ErrorKind::ValueValidation),
        ("lance consume", ErrorKind::MissingRequiredArgument),
        ("lance consume t --partition first", ErrorKind::ValueValidation),
        ("lance produce t --header source", ErrorKind::ValueValidation),
        ("lance produce t --whole --delimiter x", ErrorKind::ArgumentConflict),
        ("lance produce t --input yaml", ErrorKind::InvalidValue),
        ("lance topic list --endpoint ::1", ErrorKind::ValueValidation),
        ("lance consume t --format %x", ErrorKind::ValueValidation),
        ("lance consume t --follow --until-end", ErrorKind::ArgumentConflict),
        ("lance server --tls-cert x", ErrorKind::UnknownArgument),
        ("lance server --set raft.tick_ms", ErrorKind::ValueValidation),
        ("lance dev --nodes 0", ErrorKind::ValueValidation),
        ("lance topic list --timeout 0", ErrorKind::ValueValidation),
        ("lance completions tcsh", ErrorKind::InvalidValue),
    ];
    for (line, kind) in cases {
        let error = parse(line).expect_err(line);
        assert_eq!(error.kind(), kind, "{line}: {error}");
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn flags_of_the_server_win_over_set_and_environment() {
    let line = "lance server --set node.id=3 --set journal.file_bytes=32MiB --node-id 4 --listen [::1]:7";
    let Command::Server(args) = parse(line).unwrap().command else { panic!("not the server") };
    let environment =
        [("LANCE_NODE__ID".to_owned(), "2".to_owned()), ("LANCE_LOG__LEVEL".to_owned(), "warn".to_owned())];
    let config = crate::config::Config::load(&args.sources(environment)).unwrap();
    assert_eq!(config.node.id, 4);
    assert_eq!(config.journal.file_bytes, 32 << 20);
    assert_eq!(config.listen.client.as_str(), "[::1]:7");
    assert_eq!(config.log.level.as_str(), "warn");
}
