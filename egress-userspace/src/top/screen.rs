//! Draws the view.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Table as Widget};

use super::Snapshot;
use super::keys::{Shown, Table};
use super::rows::{self, Cell, Rows, short};

/// Below this nothing could be read.
const LEAST: (u16, u16) = (40, 6);
/// From here on, origins and egress IPs stand below pools and refusals.
const ROOMY: (u16, u16) = (100, 24);
/// Lines of pools and refusals then, with the header.
const ABOVE: u16 = 7;
/// Columns that go where there is no room, the first one first.
const DISPENSABLE: [&str; 9] = [
    "PEAK",
    "CAP",
    "BYTE/S",
    "PROTO",
    "REFUSED",
    "ADDRESSES",
    "DRAINS",
    "PKT/S",
    "NEW/S",
];
/// How full something is from which on it is coloured, percent.
const WARNING: f64 = 75.0;
const ALARM: f64 = 90.0;

/// Draws what was seen, or why nothing was.
pub fn draw(frame: &mut Frame<'_>, seen: &Result<Snapshot, String>, shown: &Shown, color: bool) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        frame.render_widget(Paragraph::new("terminal too small"), area);
        return;
    }
    let [head, body, foot] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(keys(shown)), foot);
    let snapshot = match seen {
        Ok(snapshot) => snapshot,
        Err(why) => {
            frame.render_widget(Paragraph::new(why.as_str()), body);
            return;
        }
    };
    frame.render_widget(Paragraph::new(heading(snapshot, shown, color)), head);
    let roomy = area.width >= ROOMY.0 && area.height >= ROOMY.1;
    let below = if roomy && matches!(shown.table, Table::Origins | Table::Addresses) {
        let [above, below] =
            Layout::vertical([Constraint::Length(ABOVE), Constraint::Min(1)]).areas(body);
        let [left, right] =
            Layout::horizontal([Constraint::Percentage(60), Constraint::Percentage(40)])
                .spacing(2)
                .areas(above);
        table(
            frame,
            left,
            &rows::all(snapshot, Table::Pools),
            &Shown {
                table: Table::Pools,
                ..Shown::default()
            },
            color,
        );
        table(
            frame,
            right,
            &rows::all(snapshot, Table::Refusals),
            &Shown {
                table: Table::Refusals,
                ..Shown::default()
            },
            color,
        );
        below
    } else {
        body
    };
    table(frame, below, &rows::of(snapshot, shown), shown, color);
}

fn heading<'a>(snapshot: &Snapshot, shown: &Shown, color: bool) -> Vec<Line<'a>> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let (state, good) = snapshot.state();
    let light = match good {
        Some(true) => Color::Green,
        Some(false) => Color::Red,
        None => Color::Yellow,
    };
    let tables: Vec<String> = snapshot
        .tables
        .iter()
        .filter(|table| table.used > 0)
        .map(|table| format!("{} {}/{}", table.table, table.used, table.capacity))
        .collect();
    let paused = if shown.paused { "  PAUSED" } else { "" };
    vec![
        Line::from(vec![
            Span::styled("egress top  ", bold),
            Span::styled(state, colored(Style::new(), light, color)),
            Span::styled(paused, bold),
        ]),
        Line::from(format!(
            "{} active  {} new/s  {} pkt/s  {}B/s   {}",
            snapshot.active,
            short(snapshot.rates.new_per_s),
            short(snapshot.rates.packets_per_s),
            short(snapshot.rates.bytes_per_s),
            tables.join("  "),
        )),
        Line::default(),
    ]
}

fn keys(shown: &Shown) -> Line<'static> {
    if shown.typing {
        return Line::from(format!("filter: {}_", shown.filter));
    }
    let filter = if shown.filter.is_empty() {
        String::new()
    } else {
        format!("[{}] ", shown.filter)
    };
    Line::styled(
        format!("{filter}q quit  Tab/1-4 table  s sort  r reverse  / filter  p pause"),
        Style::new().add_modifier(Modifier::DIM),
    )
}

fn table(frame: &mut Frame<'_>, area: Rect, rows: &Rows, shown: &Shown, color: bool) {
    let (rows, sort) = fitting(rows, shown.sort, usize::from(area.width));
    let rows = &rows;
    let widths = widths(rows);
    let header = rows.header.iter().enumerate().map(|(column, name)| {
        let mark = match (sort == Some(column), shown.ascending) {
            (true, false) => "v",
            (true, true) => "^",
            (false, _) => "",
        };
        let figure = rows
            .rows
            .first()
            .and_then(|row| row.get(column))
            .is_some_and(|cell| matches!(cell, Cell::Figure(..)));
        aligned(&format!("{name}{mark}"), figure, widths.get(column))
    });
    let bold = Style::new().add_modifier(Modifier::BOLD);
    // As far as the last screenful, and no further.
    let room = usize::from(area.height.saturating_sub(1)).max(1);
    let above = shown.above.min(rows.rows.len().saturating_sub(room));
    let body = rows.rows.iter().skip(above).take(room).map(|row| {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            aligned(
                cell.text(),
                matches!(cell, Cell::Figure(..)),
                widths.get(column),
            )
        });
        Row::new(cells).style(style(rows, row, color))
    });
    let constraints = widths
        .iter()
        .map(|width| Constraint::Length(u16::try_from(*width).unwrap_or(u16::MAX)));
    let widget = Widget::new(body, constraints)
        .header(Row::new(header).style(bold))
        .column_spacing(1);
    if rows.rows.is_empty() {
        let filtered = match shown.filter.as_str() {
            "" => String::new(),
            filter => format!(" with [{filter}]: Esc shows all"),
        };
        let none = format!("no {}{filtered}", shown.table.name());
        frame.render_widget(Paragraph::new(none), area);
    } else {
        frame.render_widget(widget, area);
    }
}

/// Room for the longest cell of each column, and for the mark of the one that is sorted by.
fn widths(rows: &Rows) -> Vec<usize> {
    let width = |(column, name): (usize, &&str)| {
        let cells = rows.rows.iter().filter_map(|row| row.get(column));
        let longest = cells.map(|cell| cell.text().chars().count()).max();
        longest.unwrap_or(0).max(name.len() + 1)
    };
    rows.header.iter().enumerate().map(width).collect()
}

/// The columns that fit, and which one it is sorted by then: a figure is shown whole or not at all.
fn fitting(rows: &Rows, mut sort: Option<usize>, width: usize) -> (Rows, Option<usize>) {
    let mut rows = rows.clone();
    for name in DISPENSABLE {
        let widths = widths(&rows);
        if widths.iter().sum::<usize>() + widths.len() <= width + 1 {
            break;
        }
        let Some(place) = rows.header.iter().position(|column| *column == name) else {
            continue;
        };
        rows.header.remove(place);
        for row in &mut rows.rows {
            row.remove(place);
        }
        sort = sort.filter(|column| *column != place);
        sort = sort.map(|column| column - usize::from(column > place));
    }
    (rows, sort)
}

fn aligned(text: &str, right: bool, width: Option<&usize>) -> String {
    let width = width.copied().unwrap_or(0);
    if right {
        format!("{text:>width$}")
    } else {
        text.to_owned()
    }
}

/// Full rows stand out.
fn style(rows: &Rows, row: &[Cell], color: bool) -> Style {
    let fullness = rows
        .header
        .iter()
        .zip(row)
        .find(|(name, _)| name.starts_with("FULL"))
        .map(|(_, cell)| cell);
    match fullness {
        Some(Cell::Figure(percent, _)) if *percent >= ALARM => {
            colored(Style::new().add_modifier(Modifier::BOLD), Color::Red, color)
        }
        Some(Cell::Figure(percent, _)) if *percent >= WARNING => {
            colored(Style::new(), Color::Yellow, color)
        }
        _ => Style::new(),
    }
}

fn colored(style: Style, with: Color, color: bool) -> Style {
    if color { style.fg(with) } else { style }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::inventory::DaemonState;
    use crate::top::{OriginRow, PoolRow, Rates, ReasonRow};

    fn snapshot() -> Snapshot {
        let origin = |port: u16, active, utilization| OriginRow {
            egress_ip: "192.0.2.10".parse().unwrap(),
            origin: ([198, 51, 100, 1], port).into(),
            protocol: crate::dataplane::api::Protocol::Tcp,
            active,
            peak: active,
            capacity: 40_000,
            utilization,
            refused: 0,
            rates: Rates::default(),
        };
        Snapshot {
            daemon: DaemonState::Up,
            ready: true,
            active: 38_001,
            rates: Rates {
                new_per_s: 12.0,
                packets_per_s: 3_400.0,
                bytes_per_s: 5_600_000.0,
            },
            pools: vec![PoolRow {
                pool: "partners".into(),
                ..PoolRow::default()
            }],
            origins: vec![origin(443, 38_000, 95.0), origin(80, 1, 0.0025)],
            refusals: vec![ReasonRow {
                reason: "cap_reached".into(),
                packets: 7,
                per_s: 2.0,
            }],
            ..Snapshot::default()
        }
    }

    fn drawn(size: (u16, u16), shown: &Shown, color: bool) -> (String, Terminal<TestBackend>) {
        let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).unwrap();
        terminal
            .draw(|frame| draw(frame, &Ok(snapshot()), shown, color))
            .unwrap();
        (terminal.backend().to_string(), terminal)
    }

    #[test]
    fn obs_5_all_is_there_where_there_is_room() {
        let (text, _) = drawn((120, 30), &Shown::default(), true);
        for word in [
            "daemon up, ready",
            "38001 active  12 new/s  3.4k pkt/s  5.6MB/s",
            "partners",
            "cap_reached",
            "198.51.100.1:443",
            "95.00 %",
            "q quit",
        ] {
            assert!(text.contains(word), "{word}\n{text}");
        }
        let place = |word: &str| text.find(word).unwrap();
        assert!(
            place("198.51.100.1:443") < place("198.51.100.1:80 "),
            "the fullest first"
        );
    }

    #[test]
    fn obs_5_small_terminals_show_the_table_or_say_that_they_are_too_small() {
        let (text, _) = drawn((80, 10), &Shown::default(), true);
        assert!(
            text.contains("198.51.100.1:443") && !text.contains("cap_reached"),
            "{text}"
        );
        let shown = Shown {
            table: Table::Refusals,
            ..Shown::default()
        };
        assert!(drawn((80, 10), &shown, true).0.contains("cap_reached"));
        assert!(drawn((39, 30), &shown, true).0.contains("too small"));
        for size in [(1, 1), (40, 6), (41, 7), (500, 6), (40, 200), (100, 24)] {
            for above in [0, 1, usize::MAX] {
                let shown = Shown {
                    above,
                    ..Shown::default()
                };
                drawn(size, &shown, true);
            }
        }
    }

    #[test]
    fn obs_5_full_rows_are_red_unless_colours_are_unwanted() {
        let red = |color| {
            let (_, terminal) = drawn((120, 30), &Shown::default(), color);
            let cells = terminal.backend().buffer().content().iter();
            cells.filter(|cell| cell.fg == Color::Red).count()
        };
        assert!(red(true) > 10);
        assert_eq!(red(false), 0);
    }
}
