//! `egress top`: the live view, or one look for scripts (OBS-5).

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::signal::unix::{SignalKind, signal};

use super::context::{Context, Local};
use super::{CliError, Exit, table};
use crate::config::Config;
use crate::control::{Failure, Server};
use crate::dataplane::api::{DataPlaneError, DataPlaneView};
use crate::inventory::DaemonState;
use crate::store::{SqliteStore, StateStore as _};
use crate::top::keys::{After, Shown, Table};
use crate::top::rows::{self, Cell};
use crate::top::sampler::Sampler;
use crate::top::{Snapshot, screen};

/// The longest wait for a key before somebody looks whether it shall end.
const TICK: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print one look, whose rates are those of one interval, and end; `--json` does so, too.
    #[arg(long)]
    once: bool,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..=60))]
    interval: u64,
}

pub(super) fn run(context: &mut Context<'_>, args: &Args) -> Result<Exit, CliError> {
    let (config, _) = context.config()?;
    let interval = Duration::from_secs(args.interval);
    if args.once || context.json {
        return once(context, config, interval);
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(Failure::usage(
            "egress top needs a terminal",
            "`egress top --once` prints one look, and `egress top --json` prints it for programs",
        )
        .into());
    }
    live(context, &config, interval)
}

fn daemon(config: &Config) -> DaemonState {
    if Server::is_claimed(&config.control.socket) {
        DaemonState::Up
    } else {
        DaemonState::Down
    }
}

fn once(context: &mut Context<'_>, config: Config, interval: Duration) -> Result<Exit, CliError> {
    let Local {
        config,
        stored,
        view,
    } = context.local(config)?;
    let mut snapshot = Snapshot {
        daemon: daemon(&config),
        ..Snapshot::default()
    };
    if let Some(view) = view {
        let names = stored.names();
        let mut sampler = Sampler::default();
        let mut look = || {
            sampler
                .look(view.as_ref(), &names, daemon(&config))
                .map_err(Failure::from)
        };
        look()?;
        thread::sleep(interval);
        snapshot = look()?;
    }
    context.print(&snapshot, || text(&snapshot))?;
    Ok(Exit::Done)
}

fn text(snapshot: &Snapshot) -> String {
    let rates = snapshot.rates;
    let mut parts = vec![format!(
        "{}\n{} active, {} new/s, {} packets/s, {} bytes/s",
        snapshot.state().0,
        snapshot.active,
        rows::short(rates.new_per_s),
        rows::short(rates.packets_per_s),
        rows::short(rates.bytes_per_s)
    )];
    for kind in [
        Table::Pools,
        Table::Addresses,
        Table::Origins,
        Table::Refusals,
    ] {
        let rows = rows::all(snapshot, kind);
        let Some(first) = rows.rows.first() else {
            continue;
        };
        let right: Vec<usize> = (0..)
            .zip(first)
            .filter(|(_, cell)| matches!(cell, Cell::Figure(..)))
            .map(|(column, _)| column)
            .collect();
        let cells: Vec<Vec<String>> = rows
            .rows
            .iter()
            .map(|row| row.iter().map(|cell| cell.text().to_owned()).collect())
            .collect();
        parts.push(table::render(&rows.header, &right, &cells));
    }
    parts.join("\n\n")
}

/// Until a key or a signal ends it. The terminal is as before afterwards, also after a panic.
fn live(context: &mut Context<'_>, config: &Config, interval: Duration) -> Result<Exit, CliError> {
    let ended = signals()?;
    // https://no-color.org
    let color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut looker = Looker::new(config);
    let mut terminal = ratatui::try_init()?;
    let result = follow(context, &mut terminal, &mut looker, interval, color, &ended);
    ratatui::restore();
    result
}

fn follow(
    context: &Context<'_>,
    terminal: &mut ratatui::DefaultTerminal,
    looker: &mut Looker<'_>,
    interval: Duration,
    color: bool,
    ended: &AtomicBool,
) -> Result<Exit, CliError> {
    let mut shown = Shown::default();
    let mut seen = looker.look(context);
    let mut due = Instant::now() + interval;
    loop {
        terminal.draw(|frame| screen::draw(frame, &seen, &shown, color))?;
        // What is typed is shown at once, whatever the interval.
        while !ended.load(Ordering::Relaxed) && Instant::now() < due {
            let left = due.saturating_duration_since(Instant::now());
            if !event::poll(left.min(TICK))? {
                continue;
            }
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    let columns = rows::all(&Snapshot::default(), shown.table).header.len();
                    if shown.press(key, columns) == After::Quit {
                        return Ok(Exit::Done);
                    }
                }
                Event::Resize(..) => {}
                _ => continue,
            }
            terminal.draw(|frame| screen::draw(frame, &seen, &shown, color))?;
        }
        if ended.load(Ordering::Relaxed) {
            return Ok(Exit::Done);
        }
        if !shown.paused {
            seen = looker.look(context);
        }
        due = Instant::now() + interval;
    }
}

/// Opens pins and store at each look: they may come and go.
struct Looker<'a> {
    config: &'a Config,
    sampler: Sampler,
}

impl<'a> Looker<'a> {
    fn new(config: &'a Config) -> Self {
        Self {
            config,
            sampler: Sampler::default(),
        }
    }

    fn look(&mut self, context: &Context<'_>) -> Result<Snapshot, String> {
        let names = SqliteStore::open_read_only(&self.config.store.sqlite)
            .and_then(|store| store.load())
            .map(|stored| stored.names())
            // Zones and pools are known by number then.
            .unwrap_or_default();
        let opened = context.backend.open_view(self.config, names.clone());
        let look = |view: Box<dyn DataPlaneView>| -> Result<Snapshot, DataPlaneError> {
            self.sampler
                .look(view.as_ref(), &names, daemon(self.config))
        };
        opened.and_then(look).map_err(|error| {
            // What comes anew has other counts.
            self.sampler = Sampler::default();
            Failure::from(error).to_string()
        })
    }
}

/// Becomes true when the process is asked to end.
fn signals() -> Result<Arc<AtomicBool>, Failure> {
    let failed = |error: io::Error| Failure::failed(format!("cannot catch signals: {error}"), "");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let (mut terminate, mut hangup, mut interrupt) = {
        let _inside = runtime.enter();
        let catch = |kind| signal(kind).map_err(failed);
        (
            catch(SignalKind::terminate())?,
            catch(SignalKind::hangup())?,
            catch(SignalKind::interrupt())?,
        )
    };
    let ended = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&ended);
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                    _ = interrupt.recv() => {}
                }
            });
            tell.store(true, Ordering::Relaxed);
        })
        .map_err(failed)?;
    Ok(ended)
}
