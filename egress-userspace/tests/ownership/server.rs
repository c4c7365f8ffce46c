//! A server: a data plane that goes on, and a daemon that comes and goes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use egress_userspace::config::Config;
use egress_userspace::control::Failure;
use egress_userspace::controller::{Service, Writer};
use egress_userspace::dataplane::api::{DataPlaneError, DataPlaneView, Names};
use egress_userspace::store;

use super::history::History;
use super::link::Link;
use super::model::{Kernel, Plane};
use super::random::Random;
use super::wall;

/// What went wrong last: the reason, where one waits in vain.
static LAST: Mutex<String> = Mutex::new(String::new());

pub(crate) fn last_failure() -> String {
    LAST.lock().unwrap().clone()
}

/// Who has not been heard of for so long is taken over from, where servers have opted in.
pub(crate) const TAKEOVER: Duration = Duration::from_secs(4);

/// Between two rounds of a daemon.
const ROUND: Duration = Duration::from_millis(30);

pub(crate) struct Server {
    name: String,
    config: PathBuf,
    takeover_after: Option<Duration>,
    pub(crate) link: Link,
    history: Arc<History>,
    random: Random,
    kernel: Option<Kernel>,
    daemon: Option<Daemon>,
}

struct Daemon {
    service: Arc<Mutex<Option<Arc<Service>>>>,
    ends: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

fn no_view(config: &Config, _: Names) -> Result<Box<dyn DataPlaneView>, DataPlaneError> {
    Err(DataPlaneError::Absent {
        pin: config.dataplane.pin.clone(),
    })
}

impl Server {
    pub(crate) fn new(
        name: &str,
        directory: &Path,
        etcd: u16,
        takeover_after: Option<Duration>,
        history: Arc<History>,
        mut random: Random,
    ) -> Self {
        let link = Link::to(etcd);
        fs::create_dir_all(directory).unwrap();
        let config = directory.join("egress.toml");
        // Some wait for their flows, some do not.
        let limit = 1 + random.below(3);
        let text = format!(
            "[server]\nname = \"{name}\"\n[dataplane]\nuplink = [\"up0\"]\n[store]\nsqlite = \"copy.db\"\n\
             etcd = [\"http://127.0.0.1:{}\"]\n[handover]\ndrain_limit = {limit}\n",
            link.port()
        );
        fs::write(&config, text).unwrap();
        Self {
            name: name.to_owned(),
            config,
            takeover_after,
            link,
            history,
            random,
            kernel: None,
            daemon: None,
        }
    }

    /// Starts the daemon, and the data plane if it is off.
    pub(crate) fn start(&mut self) {
        let random = self.random.split();
        let history = Arc::clone(&self.history);
        let kernel = self
            .kernel
            .get_or_insert_with(|| Kernel::begin(&self.name, history, random))
            .clone();
        let service = Arc::new(Mutex::new(None));
        let ends = Arc::new(AtomicBool::new(false));
        let (config, shared, stop) = (self.config.clone(), Arc::clone(&service), Arc::clone(&ends));
        let (random, takeover_after) = (self.random.split(), self.takeover_after);
        let thread = thread::spawn(move || {
            run(&config, takeover_after, &kernel, random, &shared, &stop);
        });
        self.daemon = Some(Daemon {
            service,
            ends,
            thread,
        });
    }

    /// Ends the daemon where it stands, or at the next place where it waits; the data plane goes on.
    pub(crate) fn kill(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.ends.store(true, Ordering::SeqCst);
            daemon.thread.join().unwrap();
        }
    }

    /// Switches the machine off, and with it all flows. Its disk is there when it is on again.
    pub(crate) fn switch_off(&mut self) {
        if let Some(kernel) = self.kernel.take() {
            kernel.switch_off();
        }
        self.kill();
    }

    /// As operators are told to do before one that was forgotten is switched on again.
    pub(crate) fn remove_copy(&self) {
        for file in ["copy.db", "copy.db-wal", "copy.db-shm"] {
            let _ = fs::remove_file(self.config.with_file_name(file));
        }
    }

    fn service(&self) -> Option<Arc<Service>> {
        self.daemon.as_ref()?.service.lock().unwrap().clone()
    }

    /// What an operator tells the daemon; false where that did not work.
    pub(crate) fn told<T>(&self, what: impl FnOnce(&mut Writer<'_>) -> Result<T, Failure>) -> bool {
        let Some(service) = self.service() else {
            return false;
        };
        let mut writer = match service.writer() {
            Ok(writer) => writer,
            Err(failure) => {
                *LAST.lock().unwrap() = format!("{}: {failure}", self.name);
                return false;
            }
        };
        let outcome = what(&mut writer);
        if let Err(failure) = &outcome {
            *LAST.lock().unwrap() = format!("{}: {failure}", self.name);
        }
        outcome.is_ok()
    }

    /// Its data plane, which is on.
    pub(crate) fn kernel(&self) -> &Kernel {
        self.kernel.as_ref().unwrap()
    }

    /// Whether another server is said to be fenced, as far as this one can tell.
    pub(crate) fn has_forgotten(&self, name: &str) -> Option<bool> {
        let mut is_fenced = None;
        self.told(|writer| {
            writer.refresh()?;
            let ownership = writer.stored().ownership.as_ref();
            is_fenced = ownership.map(|all| all.is_fenced(name));
            Ok(())
        });
        is_fenced
    }

    /// Starts its daemon anew with another `takeover_after`; its data plane goes on.
    pub(crate) fn promise(&mut self, takeover_after: Option<Duration>) {
        if self.takeover_after != takeover_after {
            self.kill();
            self.takeover_after = takeover_after;
            self.start();
        }
    }

    /// Whether its daemon has put something in force.
    pub(crate) fn is_up(&self) -> bool {
        self.service().is_some()
    }

    /// Whether it has nothing to hand over.
    pub(crate) fn is_settled(&self) -> bool {
        let service = self.service();
        service.is_some_and(|service| !service.controller().has_to_hand_over())
    }
}

/// A daemon's rounds.
fn run(
    path: &Path,
    takeover_after: Option<Duration>,
    kernel: &Kernel,
    mut random: Random,
    shared: &Mutex<Option<Arc<Service>>>,
    ends: &AtomicBool,
) {
    while !ends.load(Ordering::SeqCst) {
        let (mut config, _) = Config::load(path).unwrap();
        // Shorter than anybody may configure it.
        config.handover.takeover_after = takeover_after;
        let plane = Plane {
            kernel: kernel.clone(),
            random: Mutex::new(random.split()),
        };
        let opened = store::open(&config).unwrap();
        let started = Service::start(path, config, opened.store, Box::new(plane), no_view);
        // Where etcd does not answer and there is no copy yet.
        let service = match started {
            Ok((service, _)) => service,
            Err(failure) => {
                *LAST.lock().unwrap() = format!("starting {}: {failure}", path.display());
                thread::sleep(ROUND);
                continue;
            }
        };
        let service = Arc::new(service);
        *shared.lock().unwrap() = Some(Arc::clone(&service));
        let day = random.split();
        let beats = || {
            let mut random = day.clone();
            while !ends.load(Ordering::SeqCst) {
                wall::set(&mut random);
                let _ = service.pulse();
                thread::sleep(service.until_pulse().min(ROUND));
            }
        };
        thread::scope(|scope| {
            scope.spawn(beats);
            let mut random = random.split();
            while !ends.load(Ordering::SeqCst) {
                wall::set(&mut random);
                // As the daemon does when it hears of changes, and each second.
                let _ = service.follow();
                if service.controller().has_to_hand_over() {
                    let _ = service.hand_over();
                }
                thread::sleep(ROUND);
            }
        });
        *shared.lock().unwrap() = None;
    }
}
