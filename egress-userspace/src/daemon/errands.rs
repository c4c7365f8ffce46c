//! What the daemon itself asks of the store: on a thread beside the main one, which looks after hooks, guard and watchdog
//! meanwhile, however long a shared store takes.

use std::future::pending;
use std::sync::Arc;

use tokio::task::{JoinHandle, spawn_blocking};

use crate::control::Failure;
use crate::control::protocol::Applied;
use crate::controller::Service;

/// At most one of each kind is under way; one that is asked for meanwhile is run after it.
#[derive(Default)]
pub(super) struct Errands {
    following: Errand<bool>,
    reloading: Errand<Applied>,
    handing_over: Errand<()>,
}

/// One that has come to its end.
pub(super) enum Done {
    /// What others have changed is in force.
    Followed(Result<bool, Failure>),
    /// Slices were passed on and taken, where there were any to.
    HandedOver(Result<(), Failure>),
    /// SIGHUP has been answered.
    Reloaded(Box<Result<Applied, Failure>>),
}

struct Errand<T> {
    under_way: Option<JoinHandle<Result<T, Failure>>>,
    again: Option<Arc<Service>>,
}

impl<T> Default for Errand<T> {
    fn default() -> Self {
        Self {
            under_way: None,
            again: None,
        }
    }
}

impl Errands {
    /// Puts in force what others have changed.
    pub(super) fn follow(&mut self, service: &Arc<Service>) {
        self.following.begin(service, Service::follow);
    }

    /// Passes slices on and takes them.
    pub(super) fn hand_over(&mut self, service: &Arc<Service>) {
        if self.handing_over.under_way.is_none() {
            self.handing_over.begin(service, Service::hand_over);
        }
    }

    /// Reads configuration and resources file again.
    pub(super) fn reload(&mut self, service: &Arc<Service>) {
        self.reloading.begin(service, Service::reload);
    }

    /// The next one that ends; for ever where none is under way. May be dropped at any time.
    pub(super) async fn done(&mut self) -> Done {
        tokio::select! {
            outcome = self.following.done(Service::follow) => Done::Followed(outcome),
            outcome = self.reloading.done(Service::reload) => Done::Reloaded(Box::new(outcome)),
            outcome = self.handing_over.done(Service::hand_over) => Done::HandedOver(outcome),
        }
    }
}

type Work<T> = fn(&Service) -> Result<T, Failure>;

impl<T: Send + 'static> Errand<T> {
    fn begin(&mut self, service: &Arc<Service>, work: Work<T>) {
        let service = Arc::clone(service);
        if self.under_way.is_some() {
            self.again = Some(service);
        } else {
            self.under_way = Some(spawn_blocking(move || work(&service)));
        }
    }

    async fn done(&mut self, work: Work<T>) -> Result<T, Failure> {
        let Some(under_way) = &mut self.under_way else {
            return pending().await;
        };
        let outcome = under_way.await;
        self.under_way = None;
        if let Some(service) = self.again.take() {
            self.begin(&service, work);
        }
        outcome.unwrap_or_else(|error| {
            Err(Failure::failed(
                format!("it ended in the middle: {error}"),
                "",
            ))
        })
    }
}
