//! `lance top`: the cluster as one node sees it, on a screen that is drawn anew every second.
//!
//! [`source`] asks the node for its status document, [`screen`] draws one, and here is what joins them: keys, signals and
//! the terminal, which is given back as it was however this ends.

mod figures;
mod screen;
mod source;
#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::terminal;
use ratatui::layout::Rect;
use ratatui::widgets::Widget;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::Global;
use super::error::CliError;
use super::output::{self, OutputFormat};
use crate::status::document::{Document, Query};
use screen::Screen;
use source::Source;

/// Time between two documents.
const PERIOD: Duration = Duration::from_secs(1);

/// Width of a frame that no terminal shows, in columns.
const PLAIN_WIDTH: u16 = 100;

/// Watch a cluster as one node sees it: nodes, leaders, lag, rates, topics, elections
#[derive(Debug, Args)]
#[command(after_help = "\
The same as the status page, which every node serves over HTTP. Drawn anew every second.

Keys:
  q, Ctrl-C                       quit
  arrows, PageUp, PageDown, Home  scroll the topics
  s                               change the order of the topics

Examples:
  lance top
  lance top --status n2:1994
  lance top --once
  lance top -o json")]
pub(super) struct TopArgs {
    /// HTTP address of the node to watch, as host:port or URL [default: that of the first of --endpoint that answers]
    #[arg(long, env = "LANCE_STATUS", value_name = "URL", value_parser = source::address)]
    status: Option<String>,
    /// Print one frame as text and end; needs no terminal
    #[arg(long)]
    once: bool,
}

pub(super) async fn run(global: &Global, args: TopArgs) -> Result<ExitCode, CliError> {
    let json = global.output == OutputFormat::Json;
    if !json && !args.once && !io::stdout().is_terminal() {
        return Err(CliError::usage("standard output is not a terminal: say --once for one frame, or -o json"));
    }
    let source = match args.status {
        Some(address) => Source::new(address, global.timeout),
        None => Source::find(global).await?,
    };
    if json {
        let value = serde_json::to_value(source.settled().await?);
        output::print_json(&value.map_err(|error| CliError::failed(error.to_string()))?)?;
    } else if args.once {
        output::print(&frame(Screen::new(source.settled().await?)))?;
    } else {
        watch_until_told(source).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One frame that has room for everything.
fn frame(screen: Screen) -> String {
    let shown = io::stdout().is_terminal().then(|| terminal::size().ok()).flatten();
    let width = shown.map_or(PLAIN_WIDTH, |(width, _)| width.max(40));
    let area = Rect::new(0, 0, width, screen.height());
    let mut buffer = Buffer::empty(area);
    screen.without_keys().render(area, &mut buffer);
    let mut text = String::new();
    for row in 0..area.height {
        let line: String = (0..area.width).map(|column| buffer[(column, row)].symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Takes the terminal, and gives it back. A panic gives it back as well: see [`ratatui::try_init`].
async fn watch_until_told(source: Source) -> Result<(), CliError> {
    let failed = |error: io::Error| CliError::failed(format!("cannot use the terminal: {error}"));
    // The first answer comes before the screen is taken, so that a wrong address is an error like any other.
    let first = source.document(&Query::default()).await?;
    let mut terminal = ratatui::try_init().map_err(failed)?;
    let result = watch(&mut terminal, source, first).await;
    let restored = ratatui::try_restore();
    result.and(restored).map_err(failed)
}

async fn watch(terminal: &mut DefaultTerminal, source: Source, first: Document) -> io::Result<()> {
    let mut screen = Screen::new(first);
    let (wish, wished) = watch::channel(screen.query());
    let (tell, mut told) = mpsc::channel(1);
    tokio::spawn(follow(source, wished, tell));
    let mut events = terminal_events();
    let (mut term, mut hangup) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        terminal.draw(|frame| screen.draw(frame))?;
        tokio::select! {
            Some(answer) = told.recv() => screen.hear(answer),
            event = events.recv() => match event {
                Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                    if !press(&mut screen, key) {
                        return Ok(());
                    }
                    wish.send_if_modified(|query| {
                        let changed = *query != screen.query();
                        *query = screen.query();
                        changed
                    });
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            _ = term.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

/// Does what a key stands for; `false`: quit.
fn press(screen: &mut Screen, key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q') => return false,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char('s') => screen.sort_otherwise(),
        KeyCode::Down => screen.scroll_down(1),
        KeyCode::Up => screen.scroll_up(1),
        KeyCode::PageDown => screen.scroll_down(screen.page()),
        KeyCode::PageUp => screen.scroll_up(screen.page()),
        KeyCode::Home => screen.scroll_home(),
        _ => {}
    }
    true
}

/// Asks for a document every second, and at once when another one is wished for.
async fn follow(source: Source, mut wished: watch::Receiver<Query>, tell: mpsc::Sender<Result<Document, CliError>>) {
    loop {
        let query = wished.borrow_and_update().clone();
        if tell.send(source.document(&query).await).await.is_err() {
            return;
        }
        tokio::select! {
            () = sleep(PERIOD) => {}
            changed = wished.changed() => if changed.is_err() { return },
        }
    }
}

/// Keys and changes of size. The thread that waits for them ends with the process.
fn terminal_events() -> mpsc::Receiver<io::Result<Event>> {
    let (send, events) = mpsc::channel(16);
    std::thread::spawn(move || {
        loop {
            let event = event::read();
            let failed = event.is_err();
            if send.blocking_send(event).is_err() || failed {
                return;
            }
        }
    });
    events
}
