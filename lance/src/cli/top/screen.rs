//! What `lance top` shows: a document and a place in its topics, drawn into however much room there is.

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Row, Sparkline, Table, Widget};
use std::fmt::Write as _;

use super::figures::{ago, bytes, clock, count, milliseconds, whole};
use super::source::TOPICS;
use crate::cli::error::CliError;
use crate::cli::output::counted;
use crate::status::document::{Document, PartitionView, Query, Rates, Sort, TopicView, View};

const QUIET: Style = Style::new().add_modifier(Modifier::DIM);
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const GOOD: Style = Style::new().fg(Color::Green);
const WARN: Style = Style::new().fg(Color::Yellow);
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);

/// Lines of a table besides its rows: its title and its head.
const TABLE: u16 = 2;

/// Width from which elections have a place beside nodes and groups.
const BESIDE: u16 = 116;

/// Width from which topics have all their columns.
const WIDE: u16 = 108;

/// Most elections of a frame that has room for everything.
const ELECTIONS: usize = 10;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Screen {
    document: Document,
    /// Why the newest document did not come.
    failure: Option<String>,
    sort: Sort,
    /// The topic at the top, in the order of `sort`, and the line of it.
    topic: usize,
    line: usize,
    /// Lines that the topics had when they were drawn last.
    room: usize,
    keys: bool,
}

/// How many lines each part gets.
#[derive(Clone, Copy, Debug)]
struct Plan {
    notices: u16,
    charts: u16,
    nodes: u16,
    groups: u16,
    elections: u16,
}

impl Screen {
    pub(super) fn new(document: Document) -> Self {
        Self { document, failure: None, sort: Sort::Name, topic: 0, line: 0, room: 1, keys: true }
    }

    /// A screen that nobody sits at.
    pub(super) fn without_keys(self) -> Self {
        Self { keys: false, ..self }
    }

    /// What is to be asked for: some topics before the one at the top too, so that going back shows them at once.
    pub(super) fn query(&self) -> Query {
        let before = TOPICS / 4;
        Query { topics: Some(TOPICS), skip: self.topic.saturating_sub(before), sort: self.sort, ..Query::default() }
    }

    /// Take a document, or the reason why there is none: then the old one stays, and is marked.
    pub(super) fn hear(&mut self, answer: Result<Document, CliError>) {
        match answer {
            Ok(document) => {
                self.document = document;
                self.failure = None;
                let listed = self.view().map_or(0, |view| view.topics.count.saturating_sub(view.topics.left_out));
                self.topic = self.topic.min(listed.saturating_sub(1));
            }
            Err(error) => self.failure = Some(error.message().to_owned()),
        }
    }

    pub(super) fn sort_otherwise(&mut self) {
        self.sort = match self.sort {
            Sort::Name => Sort::Rate,
            Sort::Rate => Sort::Size,
            Sort::Size => Sort::Records,
            Sort::Records => Sort::Name,
        };
        self.scroll_home();
    }

    pub(super) fn scroll_home(&mut self) {
        (self.topic, self.line) = (0, 0);
    }

    /// Lines that PageUp and PageDown scroll by.
    pub(super) fn page(&self) -> usize {
        self.room.saturating_sub(1).max(1)
    }

    pub(super) fn scroll_down(&mut self, lines: usize) {
        for _ in 0..lines {
            let Some(view) = self.view() else { return };
            let rest = self.shown(view).skip(1).map(lines_of).sum::<usize>();
            let own = self.shown(view).next().map_or(1, lines_of);
            if view.topics.more == 0 && own - self.line.min(own) + rest <= self.room {
                return;
            }
            if self.line + 1 < own {
                self.line += 1;
            } else {
                (self.topic, self.line) = (self.topic + 1, 0);
            }
        }
    }

    pub(super) fn scroll_up(&mut self, lines: usize) {
        for _ in 0..lines {
            if self.line > 0 {
                self.line -= 1;
            } else if self.topic > 0 {
                self.topic -= 1;
                let own = self.view().and_then(|view| self.shown(view).next().map(lines_of));
                self.line = own.unwrap_or(1) - 1;
            }
        }
    }

    fn view(&self) -> Option<&View> {
        self.document.view.as_ref()
    }

    /// The topics from the one at the top on, as far as they are here.
    fn shown<'a>(&self, view: &'a View) -> impl Iterator<Item = &'a TopicView> + use<'a> {
        let page = if self.topic < view.topics.skip { &[] } else { view.topics.page.as_slice() };
        page.iter().skip(self.topic.saturating_sub(view.topics.skip))
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let area = frame.area();
        self.room = usize::from(self.topics_area(area).height.saturating_sub(TABLE)).max(1);
        frame.render_widget(&*self, area);
    }

    /// Lines of a frame that has room for everything.
    pub(super) fn height(&self) -> u16 {
        let plan = self.whole();
        let lines =
            |view: &View| view.topics.page.iter().map(lines_of).sum::<usize>() + usize::from(view.topics.more > 0);
        let topics = u16::try_from(self.view().map_or(0, lines)).unwrap_or(u16::MAX / 2);
        1 + plan.notices + plan.charts + plan.nodes + plan.groups + plan.elections + TABLE + topics
    }

    /// What each part would take.
    fn whole(&self) -> Plan {
        let table = |rows: usize| u16::try_from(rows).unwrap_or(1000).min(1000) + TABLE + 1;
        let notices = self.notices().len() as u16;
        let (nodes, groups, elections) = self.view().map_or((0, 0, 0), |view| {
            let elections = view.elections.len().clamp(1, ELECTIONS);
            (table(view.nodes.len()), table(view.groups.len()), table(elections))
        });
        Plan { notices, charts: 7, nodes, groups, elections }
    }

    /// What each part gets: everything if there is room, else little enough that topics have a third of the lines.
    fn plan(&self, height: u16) -> Plan {
        let whole = self.whole();
        if height >= self.height() {
            return whole;
        }
        let high = height >= 36;
        Plan {
            notices: whole.notices.min(3),
            charts: if high { 7 } else { 3 },
            nodes: whole.nodes.min(if high { 8 } else { 6 }),
            groups: whole.groups.min(if high { 9 } else { 6 }),
            elections: if high { whole.elections.min(7) } else { 0 },
        }
    }

    fn areas(&self, area: Rect) -> ([Rect; 6], bool) {
        let mut plan = self.plan(area.height);
        let beside = area.width >= BESIDE;
        if beside {
            plan.elections = 0;
        }
        let mut next = area.y;
        let end = area.bottom() - self.key_lines(area);
        let parts = [1, plan.notices, plan.charts, plan.nodes, plan.groups, plan.elections].map(|lines| {
            let height = lines.min(end - next);
            let part = Rect { y: next, height, ..area };
            next += height;
            part
        });
        (parts, beside)
    }

    fn topics_area(&self, area: Rect) -> Rect {
        let (parts, _) = self.areas(area);
        let y = parts[5].bottom();
        Rect { y, height: area.bottom() - self.key_lines(area) - y, ..area }
    }

    /// Lines that say what keys do.
    fn key_lines(&self, area: Rect) -> u16 {
        u16::from(self.keys && area.height > 2)
    }

    /// What is wrong or under way, a line each.
    fn notices(&self) -> Vec<(Style, String)> {
        let Document { problem, not_ready, view, .. } = &self.document;
        let mut lines = Vec::new();
        if let Some(failure) = &self.failure {
            let from = clock(self.document.now_ms);
            lines.push((BAD, format!("OLD, from {from}: {failure}")));
        }
        if let Some(problem) = problem {
            let from = view.as_ref().map_or(String::new(), |view| format!(", from {}", clock(view.taken_ms)));
            lines.push((BAD, format!("OLD{from}: {problem}")));
        }
        if let Some(reason) = not_ready {
            lines.push((BAD, format!("this node cannot serve clients: {reason}")));
        }
        let Some(view) = view else { return lines };
        lines.extend(view.problems.iter().map(|problem| (WARN, problem.clone())));
        lines.extend(view.transfers.iter().map(|t| {
            let (done, total) = (bytes(t.bytes_done as f64), bytes(t.bytes_total as f64));
            (QUIET, format!("the state of group {} comes from node {}: {done} of {total}", t.group, t.from))
        }));
        lines
    }

    fn headline(&self) -> Line<'_> {
        let Document { node, version, now_ms, not_ready, problem, view, .. } = &self.document;
        let (state, style) = match view {
            _ if self.failure.is_some() => ("not reachable", BAD),
            _ if problem.is_some() => ("silent", BAD),
            _ if not_ready.is_some() => ("not ready", BAD),
            Some(view) if !view.problems.is_empty() => ("degraded", WARN),
            _ => ("all well", GOOD),
        };
        let cluster = view.as_ref().map_or("none yet", |view| view.cluster_id.get(..8).unwrap_or(&view.cluster_id));
        Line::from(vec![
            Span::styled(format!("LANCE node {node}  "), BOLD),
            Span::styled(state, style),
            Span::styled(format!("  cluster {cluster}  version {version}  {}", clock(*now_ms)), QUIET),
        ])
    }
}

/// Lines of a topic: one, and one for each partition where there are several.
fn lines_of(topic: &TopicView) -> usize {
    if topic.partitions <= 1 { 1 } else { 1 + topic.page.len() + usize::from(topic.more > 0) }
}

impl Widget for &Screen {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let ([head, notices, charts, nodes, groups, elections], beside) = self.areas(area);
        self.headline().render(head, buffer);
        draw_notices(&self.notices(), notices, buffer);
        draw_charts(&self.document.rates, charts, buffer);
        if let Some(view) = self.view() {
            let (left, right) = if beside {
                let upper = Rect { height: nodes.height + groups.height, ..nodes };
                let [_, right] = Layout::horizontal([Constraint::Min(0), Constraint::Length(42)]).areas(upper);
                (area.width - 44, right)
            } else {
                (area.width, elections)
            };
            draw_nodes(view, self.document.node, Rect { width: left, ..nodes }, buffer);
            draw_groups(view, Rect { width: left, ..groups }, buffer);
            draw_elections(view, self.document.now_ms, right, buffer);
            self.draw_topics(view, self.topics_area(area), buffer);
        }
        if self.key_lines(area) > 0 {
            let last = Rect { y: area.bottom() - 1, height: 1, ..area };
            let keys = "q quit   ↑ ↓ PgUp PgDn Home scroll the topics   s sort them otherwise";
            Line::styled(keys, QUIET).render(last, buffer);
        }
    }
}

fn draw_notices(notices: &[(Style, String)], area: Rect, buffer: &mut Buffer) {
    let room = usize::from(area.height);
    let shown = if notices.len() > room { room.saturating_sub(1) } else { notices.len() };
    for (row, (style, text)) in area.rows().zip(&notices[..shown]) {
        Line::styled(format!("! {text}"), *style).render(row, buffer);
    }
    if let Some(row) = area.rows().nth(shown).filter(|_| shown < notices.len()) {
        Line::styled(format!("! and {} more", notices.len() - shown), WARN).render(row, buffer);
    }
}

/// What a chart shows: its title, its values, the newest of them as text, and its colour.
type Chart<'a> = (&'static str, Vec<Option<f64>>, String, Color);

fn draw_charts(rates: &Rates, area: Rect, buffer: &mut Buffer) {
    let known = |values: &[f64]| values.iter().copied().map(Some).collect::<Vec<_>>();
    let last = |values: &[f64], text: fn(f64) -> String| {
        values.last().map_or("–".to_owned(), |value| format!("{}/s", text(*value)))
    };
    let time = |values: &[Option<f64>]| values.last().copied().flatten().map_or("–".to_owned(), milliseconds);
    let charts: [Chart<'_>; 6] = [
        ("records in", known(&rates.records_in), last(&rates.records_in, count), Color::Blue),
        ("records out", known(&rates.records_out), last(&rates.records_out, count), Color::Cyan),
        ("produce", rates.produce_ms.clone(), time(&rates.produce_ms), Color::Magenta),
        ("bytes in", known(&rates.bytes_in), last(&rates.bytes_in, bytes), Color::Blue),
        ("bytes out", known(&rates.bytes_out), last(&rates.bytes_out, bytes), Color::Cyan),
        ("journal sync", rates.sync_ms.clone(), time(&rates.sync_ms), Color::Magenta),
    ];
    // One line stays empty.
    let each = area.height.saturating_sub(1) / 2;
    for (at, (title, values, now, colour)) in charts.iter().enumerate() {
        let (row, column) = ((at / 3) as u16, (at % 3) as u16);
        let width = area.width / 3;
        let place =
            Rect { x: area.x + column * width, y: area.y + row * each, width: width.saturating_sub(2), height: each };
        let label = Line::from(vec![Span::styled(format!("{title} "), QUIET), Span::styled(now, BOLD)]);
        label.render(place, buffer);
        if each > 1 {
            let drawn = Rect { y: place.y + 1, height: each - 1, ..place };
            let from = values.len().saturating_sub(usize::from(drawn.width));
            // Whole numbers are drawn; what matters is how values compare.
            let most = values.iter().flatten().copied().fold(0.0, f64::max);
            let part = |value: &Option<f64>| value.map(|value| (value / most.max(1e-9) * 1000.0) as u64);
            let style = Style::new().fg(*colour);
            Sparkline::default().data(values[from..].iter().map(part)).max(1000).style(style).render(drawn, buffer);
        }
    }
}

/// A column's name, its width, and whether it holds numbers, which are aligned to the right.
type Column = (&'static str, Constraint, bool);

const fn words(name: &'static str, width: Constraint) -> Column {
    (name, width, false)
}

const fn number(name: &'static str, width: u16) -> Column {
    (name, Constraint::Length(width), true)
}

/// A title, a head and rows; if there is no room for all, the last line counts the rest.
fn draw_table(title: (&str, String), columns: &[Column], mut rows: Vec<Row<'_>>, area: Rect, buffer: &mut Buffer) {
    if area.height <= TABLE {
        return;
    }
    let (name, about) = title;
    let line = Line::from(vec![Span::styled(format!("{name}  "), BOLD), Span::styled(about, QUIET)]);
    line.render(Rect { height: 1, ..area }, buffer);
    let room = usize::from(area.height - TABLE);
    if rows.len() > room {
        let rest = rows.len() - (room - 1);
        rows.truncate(room - 1);
        let last = Rect { y: area.bottom() - 1, height: 1, ..area };
        Line::styled(format!("and {rest} more"), QUIET).render(last, buffer);
    }
    let named = |(name, _, numeric): &Column| if *numeric { right((*name).to_owned()) } else { Cell::from(*name) };
    let head = Row::new(columns.iter().map(named)).style(QUIET);
    let widths = columns.iter().map(|(_, width, _)| *width);
    let below = Rect { y: area.y + 1, height: area.height - 1, ..area };
    Widget::render(Table::new(rows, widths).header(head).column_spacing(2), below, buffer);
}

/// The last line of a part stays empty.
fn above_gap(area: Rect) -> Rect {
    Rect { height: area.height.saturating_sub(1), ..area }
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

fn leader(node: Option<u64>) -> Cell<'static> {
    node.map_or(Cell::from("none").style(BAD), |node| Cell::from(format!("node {node}")))
}

fn draw_nodes(view: &View, own: u64, area: Rect, buffer: &mut Buffer) {
    let row = |node: &crate::status::document::NodeView| {
        let well = node.connected && (node.id != own || node.state == "ready");
        let leads: Vec<String> = node.leads.iter().map(u32::to_string).collect();
        let membership = if node.membership == "member" { "" } else { node.membership.as_str() };
        Row::new(vec![
            Cell::from(if node.id == own { format!("{} (this)", node.member) } else { node.member.clone() }),
            Cell::from(format!("{} {membership}", node.state).trim_end().to_owned()).style(if well {
                GOOD
            } else {
                BAD
            }),
            Cell::from(if leads.is_empty() { "–".to_owned() } else { leads.join(",") }),
            right(node.free_bytes.map_or_else(|| "?".to_owned(), |left| bytes(left as f64))),
            Cell::from(if node.version.is_empty() { "?".to_owned() } else { node.version.clone() }),
            Cell::from(node.client_address.clone()),
            Cell::from(node.http_address.clone()),
        ])
    };
    let reached = view.nodes.iter().filter(|node| node.connected).count();
    let columns = [
        words("NODE", Constraint::Length(9)),
        words("STATE", Constraint::Fill(2)),
        words("LEADS", Constraint::Fill(1)),
        number("DISK LEFT", 10),
        words("VERSION", Constraint::Length(8)),
        words("CLIENTS", Constraint::Fill(2)),
        words("HTTP", Constraint::Fill(2)),
    ];
    let mut about = format!("{reached} of {} reached", view.nodes.len());
    if let Some(all) = &view.traffic {
        let _ = write!(about, " · all nodes: {}/s in, {}/s out", count(all.records_in), count(all.records_out));
        let _ = write!(about, " ({}/s, {}/s)", bytes(all.bytes_in), bytes(all.bytes_out));
        if let Some(ms) = all.produce_ms {
            let _ = write!(about, ", produce {}", milliseconds(ms));
        }
    }
    let title = ("NODES", about);
    draw_table(title, &columns, view.nodes.iter().map(row).collect(), above_gap(area), buffer);
}

fn draw_groups(view: &View, area: Rect, buffer: &mut Buffer) {
    let row = |group: &crate::status::document::GroupView| {
        let lag = |lag: Option<u64>| lag.map_or_else(|| "?".to_owned(), whole);
        let lags: Vec<String> = group.followers.iter().map(|f| format!("{}:{}", f.member, lag(f.lag))).collect();
        let voters = if group.outgoing.is_empty() {
            group.voters.join(",")
        } else {
            format!("{} → {}", group.outgoing.join(","), group.voters.join(","))
        };
        Row::new(vec![
            right(group.group.to_string()),
            leader(group.leader),
            Cell::from(group.role.clone()),
            right(group.term.to_string()),
            right(whole(group.commit_index)),
            Cell::from(voters),
            right(group.behind.map_or("–".to_owned(), whole)),
            Cell::from(if lags.is_empty() { "–".to_owned() } else { lags.join(" ") }),
        ])
    };
    let columns = [
        number("GROUP", 5),
        words("LEADER", Constraint::Length(8)),
        words("HERE", Constraint::Length(9)),
        number("TERM", 6),
        number("COMMITTED", 13),
        words("VOTERS", Constraint::Fill(1)),
        number("LAG HERE", 8),
        words("FOLLOWERS", Constraint::Fill(1)),
    ];
    let title = (
        "GROUPS",
        "lag counts entries; followers' is known to their leader only, ? until it has heard from them".to_owned(),
    );
    draw_table(title, &columns, view.groups.iter().map(row).collect(), above_gap(area), buffer);
}

fn draw_elections(view: &View, now_ms: u64, area: Rect, buffer: &mut Buffer) {
    let row = |election: &crate::status::document::ElectionView| {
        Row::new(vec![
            Cell::from(ago(now_ms.saturating_sub(election.at_ms))),
            right(election.group.to_string()),
            Cell::from(format!("node {}", election.leader)),
            right(election.term.to_string()),
        ])
    };
    let columns = [
        words("WHEN", Constraint::Length(12)),
        number("GROUP", 5),
        words("LEADER", Constraint::Length(8)),
        number("TERM", 8),
    ];
    let area = above_gap(area);
    let room = usize::from(area.height.saturating_sub(TABLE));
    let rows = view.elections.iter().take(room).map(row).collect();
    draw_table(("RECENT ELECTIONS", String::new()), &columns, rows, area, buffer);
}

impl Screen {
    fn draw_topics(&self, view: &View, area: Rect, buffer: &mut Buffer) {
        let topics = &view.topics;
        let order = match topics.sort {
            Sort::Name => "name",
            Sort::Rate => "records per second",
            Sort::Size => "size",
            Sort::Records => "records",
        };
        let growth = topics.records_per_second.map_or(String::new(), |rate| format!(", {} records/s", count(rate)));
        let left = if topics.left_out > 0 { format!(", {} not looked at", topics.left_out) } else { String::new() };
        let about = format!(
            "{}, {}, {} on each replica{growth}; by {order}{left}",
            counted(topics.count as u64, "topic"),
            counted(topics.partitions, "partition"),
            bytes(topics.size_bytes as f64),
        );
        let wide = area.width >= WIDE;
        let mut rows: Vec<Row<'static>> =
            self.shown(view).flat_map(|topic| topic_rows(topic, wide)).skip(self.line).collect();
        if topics.more > 0 {
            rows.push(Row::new([format!("{} more topics", topics.more)]).style(QUIET));
        }
        // What is below the screen is reached by scrolling.
        rows.truncate(usize::from(area.height.saturating_sub(TABLE)));
        let columns = [
            words("TOPIC", Constraint::Fill(1)),
            words("LEADER", Constraint::Length(8)),
            number("FIRST OFFSET", 13),
            number("END OFFSET", 13),
            number("RECORDS", 8),
            number("RECORDS/s", 9),
            number("SIZE", 9),
        ];
        let columns = keep(columns.into(), wide);
        draw_table(("TOPICS", about), &columns, rows, area, buffer);
    }
}

/// Without the columns that a narrow screen has no room for: the first offset and the number of records.
fn keep<T>(columns: Vec<T>, wide: bool) -> Vec<T> {
    columns.into_iter().enumerate().filter(|(at, _)| wide || ![2, 4].contains(at)).map(|(_, column)| column).collect()
}

fn empty() -> Cell<'static> {
    // The default of a cell spans no column at all.
    Cell::from("")
}

fn extent(partition: Option<&PartitionView>) -> [Cell<'static>; 3] {
    match partition {
        Some(p) => [leader(p.leader), right(whole(p.log_start_offset)), right(whole(p.high_watermark))],
        None => [empty(), empty(), empty()],
    }
}

fn topic_rows(topic: &TopicView, wide: bool) -> Vec<Row<'static>> {
    let row = |name: String, of: Option<&PartitionView>, records: u64, rate: Cell<'static>, size: u64| {
        let mut cells = vec![Cell::from(name)];
        cells.extend(extent(of));
        cells.extend([right(count(records as f64)), rate, right(bytes(size as f64))]);
        Row::new(keep(cells, wide))
    };
    let single = topic.page.first().filter(|_| topic.partitions <= 1);
    let name = match single {
        Some(_) => topic.name.clone(),
        None => format!("{}  ({})", topic.name, counted(topic.partitions.into(), "partition")),
    };
    let rate = right(topic.records_per_second.map_or("–".to_owned(), count));
    let mut rows = vec![row(name, single, topic.records, rate, topic.size_bytes)];
    if single.is_some() {
        return rows;
    }
    for partition in &topic.page {
        let records = partition.high_watermark.saturating_sub(partition.log_start_offset);
        let name = format!("  {}", partition.partition);
        rows.push(row(name, Some(partition), records, empty(), partition.size_bytes).style(QUIET));
    }
    if topic.more > 0 {
        rows.push(Row::new([format!("  {} more", topic.more)]).style(QUIET));
    }
    rows
}
