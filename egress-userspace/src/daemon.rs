//! The daemon: takes the data plane over, keeps it as configured, and answers the control socket.
//!
//! It may die at any instant: packets go on without it, and the next start finds everything in maps, pins and
//! store (SAFE-2). So there is nothing to save at the end, and SIGTERM only closes the socket.

mod errands;
mod logging;
mod pulse;
mod refusals;

use std::future::pending;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use errands::{Done, Errands};
use logging::Logging;
use refusals::Refusals;

use crate::api::Listener;
use crate::cluster::{Answering, Trust};
use crate::config::Config;
use crate::control::protocol::Applied;
use crate::control::{BindError, Failure, Handler, Server};
use crate::controller::Service;
use crate::dataplane::api::{DataPlaneError, DataPlaneView, Names};
use crate::dataplane::{Claim, Plane, View};
use crate::liveness::{Healths, Prober, State};
use crate::notify;
use crate::store::{self, SqliteStore};
use crate::utilization::{History, Recording};

/// Time between two rounds of housekeeping.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
const LOGGING: &str = "beginning the flow log";

impl From<BindError> for Failure {
    fn from(error: BindError) -> Self {
        Self::failed(error.to_string(), error.remedy())
    }
}

/// Opens what is pinned, for reading.
pub fn open_view(config: &Config, names: Names) -> Result<Box<dyn DataPlaneView>, DataPlaneError> {
    Ok(Box::new(View::open(&config.dataplane, names)?))
}

/// Runs until SIGTERM or SIGINT, or until `egress detach` has taken everything off.
///
/// # Errors
/// Whatever keeps it from starting, with the remedy; what ran before goes on running.
pub fn run(config_path: &Path, config: Config) -> Result<(), Failure> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start the runtime: {error}"), ""))?;
    let outcome = runtime.block_on(serve(config_path, config));
    // Whoever waits for a shared store holds up no end.
    runtime.shutdown_background();
    outcome
}

async fn serve(config_path: &Path, config: Config) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    // First of all, since it tells whether another daemon is at work.
    let mut server = Server::bind(&config.control.socket)?;
    let listener = config.api.as_ref().map(Listener::bind).transpose()?;
    // Before the store: opening it brings it up to date, and another daemon, perhaps of an older version, may use it.
    let claim = Claim::of(&config.dataplane)?;
    let store::Opened {
        store,
        changes: mut elsewhere,
    } = store::open(&config)?;
    // Those of a shared store are looked up in its copy.
    let tokens = SqliteStore::open(&config.store.sqlite)?;
    let history = History::beside(&config.store.sqlite);
    let retention = config.utilization;
    let mut plane = Plane::open(claim, &config.dataplane)?;
    plane.announce(config.announce.clone())?;
    let mut watcher = plane.watcher()?;
    let events = plane.events();
    let mut logging = Logging::new(plane.flow_records());
    let (service, applied) =
        Service::start(config_path, config, store, Box::new(plane), open_view)?;
    announce(&applied);
    let (names, known_names) = watch::channel(service.stored().names());
    let service = Arc::new(service);
    server
        .serve(Arc::clone(&service) as Arc<dyn Handler>)
        .map_err(|error| {
            Failure::failed(format!("cannot serve the control socket: {error}"), "")
        })?;
    let (mut api, mut recording, mut answering) = (None, None, None);
    if let Some(listener) = listener {
        let trust = trust_of(service.controller().config());
        match Recording::start(Arc::clone(&service), &history, retention) {
            Ok(started) => {
                recording = Some(started);
                if let Some(trust) = &trust {
                    let started = Answering::start(trust, Arc::clone(&service), &history);
                    answering = started
                        .inspect_err(
                            |error| tracing::error!(%error, "the other servers are not answered"),
                        )
                        .ok();
                }
            }
            // Nobody's connections depend on it.
            Err(failure) => tracing::error!("utilization is not recorded: {failure}"),
        }
        api = Some(listener.serve(Arc::clone(&service), tokens, &history, trust)?);
    }
    // Before anything else takes its time: after a boot nothing is used until the store has taken a sign of life.
    let pulse = pulse::Pulse::start(Arc::clone(&service))
        .map_err(|error| Failure::failed(format!("cannot start a thread: {error}"), ""))?;
    // Without it everybody is believed to be there.
    let prober = Prober::start()
        .inspect_err(|error| tracing::error!(%error, "the other servers are not watched"))
        .ok();
    let mut healths = prober.as_ref().map(Prober::healths);
    watch_others(&service, prober.as_ref());
    let mut refusals = Refusals::start(move || Ok(events.open()?.run(known_names.clone())))?;
    let mut trouble = Trouble::default();
    let mut errands = Errands::default();
    trouble.note(LOGGING, logging.follow(&service));
    eprintln!("ready");
    notify::ready();

    let mut housekeeping = interval(HOUSEKEEPING);
    housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = watcher.next() => {
                let mut controller = service.controller();
                if controller.is_detached() {
                    tracing::info!("detached: nothing is left to look after");
                    break;
                }
                trouble.note("looking after the hooks", controller.dataplane_mut().repair());
            }
            _ = housekeeping.tick() => {
                notify::alive();
                {
                    let mut controller = service.controller();
                    if !controller.is_detached() {
                        trouble.note("housekeeping", controller.dataplane_mut().tidy());
                        if let Err(failure) = controller.follow_lapse() {
                            trouble.say(format!("following `takeover_after`: {failure}"));
                        }
                        names.send_if_modified(|known| {
                            let now = controller.stored().names();
                            let changed = *known != now;
                            *known = now;
                            changed
                        });
                    }
                }
                watch_others(&service, prober.as_ref());
                // What could not be put in force before.
                if healths.as_ref().is_some_and(|now| *now.borrow() != *service.controller().healths()) {
                    hear(&service, healths.as_mut(), &mut trouble);
                }
                if service.controller().is_behind() {
                    errands.follow(&service);
                }
                if service.controller().has_to_hand_over() {
                    errands.hand_over(&service);
                }
                trouble.note("logging refusals", refusals.look_after().await);
                trouble.note(LOGGING, logging.follow(&service));
            }
            _ = signals.reload.recv() => {
                notify::reloading();
                errands.reload(&service);
            }
            () = changed(&mut healths) => hear(&service, healths.as_mut(), &mut trouble),
            () = changed(&mut elsewhere) => errands.follow(&service),
            done = errands.done() => match done {
                Done::Followed(outcome) => followed(outcome, &mut trouble),
                Done::HandedOver(outcome) => handed_over(outcome, &mut trouble),
                Done::Reloaded(outcome) => {
                    reloaded(*outcome);
                    trouble.note(LOGGING, logging.follow(&service));
                }
            },
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
        }
    }
    notify::stopping();
    drop(pulse);
    drop(api);
    drop(answering);
    drop(recording);
    refusals.stop();
    drop(logging);
    tracing::info!("the daemon ends; what is still attached goes on translating");
    Ok(())
}

/// How the servers know each other. Without it they ask and answer nothing, and say so; nobody's connections depend on it.
fn trust_of(config: &Config) -> Option<Arc<Trust>> {
    let trust = config.cluster.as_ref().map(Trust::read)?;
    trust
        .inspect_err(|failure| tracing::error!("the other servers cannot be asked: {failure}"))
        .map(Arc::new)
        .ok()
}

/// Waits for news, for ever where there are none.
async fn changed<T>(changes: &mut Option<watch::Receiver<T>>) {
    let heard = match changes {
        Some(changes) => changes.changed().await.is_ok(),
        None => false,
    };
    if !heard {
        pending::<()>().await;
    }
}

/// Says whom to ask whether they are there.
fn watch_others(service: &Service, prober: Option<&Prober>) {
    if let Some(prober) = prober {
        prober.watch(service.controller().watched());
    }
}

/// Sends new connections to those that are there.
fn hear(service: &Service, healths: Option<&mut watch::Receiver<Healths>>, trouble: &mut Trouble) {
    let Some(healths) = healths else { return };
    let now = healths.borrow_and_update().clone();
    let mut controller = service.controller();
    if controller.is_detached() {
        return;
    }
    for (address, health) in &now {
        let before = controller.healths().get(address).copied();
        let state = before.map_or_else(State::default, |before| before.state);
        if state != health.state && (state, health.state) != (State::Unknown, State::Alive) {
            let takes = health.takes();
            tracing::warn!(server = %address, state = ?health.state, gets_new_connections = takes, "another server");
        }
    }
    if let Err(failure) = controller.heard(now) {
        trouble.say(format!("following the other servers: {failure}"));
    }
}

/// Says whether others have changed something.
fn followed(outcome: Result<bool, Failure>, trouble: &mut Trouble) {
    match outcome {
        Ok(true) => tracing::info!("another server has changed the configuration: in force here"),
        Ok(false) => {}
        Err(failure) => trouble.say(format!("following the shared store: {failure}")),
    }
}

/// Says what keeps slices from being handed over.
fn handed_over(outcome: Result<(), Failure>, trouble: &mut Trouble) {
    if let Err(failure) = outcome {
        trouble.say(format!("handing slices over: {failure}"));
    }
}

/// SIGHUP was answered: all of the new configuration, or none of it.
fn reloaded(outcome: Result<Applied, Failure>) {
    match outcome {
        Ok(applied) => {
            announce(&applied);
            tracing::info!("reloaded");
        }
        Err(failure) => {
            tracing::error!("not reloaded, and nothing changed:\n{failure}");
        }
    }
    notify::ready();
}

/// Says what changed, and what to think of.
fn announce(applied: &Applied) {
    for warning in &applied.warnings.0 {
        tracing::warn!("{warning}");
    }
    for note in &applied.notes {
        tracing::warn!("{note}");
    }
}

struct Signals {
    reload: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let catch = |kind| {
            signal(kind)
                .map_err(|error| Failure::failed(format!("cannot catch signals: {error}"), ""))
        };
        Ok(Self {
            reload: catch(SignalKind::hangup())?,
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
        })
    }
}

/// What went wrong last: said when it begins, changes and ends, not ten times a second.
#[derive(Default)]
struct Trouble(Option<String>);

impl Trouble {
    fn note(&mut self, doing: &str, outcome: Result<Vec<String>, DataPlaneError>) {
        match outcome {
            Ok(lines) => {
                for line in lines {
                    tracing::warn!("{line}");
                }
                if self.0.as_ref().is_some_and(|last| last.starts_with(doing)) {
                    tracing::info!("{doing} works again");
                    self.0 = None;
                }
            }
            Err(error) => self.say(format!("{doing}: {}", Failure::from(error))),
        }
    }

    fn say(&mut self, text: String) {
        if self.0.as_ref() != Some(&text) {
            tracing::error!("{text}");
            self.0 = Some(text);
        }
    }
}
