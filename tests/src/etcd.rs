//! etcd, the store that servers share: one member on a node.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::{
    netns::Namespace,
    service::{Port, Service},
};

/// Where clients ask.
pub const CLIENTS: u16 = 2379;
/// Where other members would.
const MEMBERS: u16 = 2380;

/// A member that runs, has been stopped, or was killed; it goes with the value.
#[derive(Debug)]
pub struct Etcd {
    node: Namespace,
    directory: PathBuf,
    address: IpAddr,
    service: Option<Service>,
}

impl Etcd {
    /// Starts it; it answers at `address` of the node.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(node: Namespace, directory: &Path, address: IpAddr) -> Result<Self> {
        let mut etcd = Self {
            node,
            directory: directory.to_owned(),
            address,
            service: None,
        };
        etcd.restart()?;
        Ok(etcd)
    }

    /// Leaves it running when the value is dropped (a persistent lab).
    pub fn keep(mut self) {
        if let Some(service) = self.service.take() {
            service.keep();
        }
    }

    /// What servers are told.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}:{CLIENTS}", self.address)
    }

    /// Starts it again, with what it held.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> Result<()> {
        let endpoint = self.endpoint();
        let members = format!("http://127.0.0.1:{MEMBERS}");
        let cluster = format!("default={members}");
        let data = self.directory.join("etcd").display().to_string();
        let command = [
            "etcd",
            "--data-dir",
            &data,
            "--listen-client-urls",
            &endpoint,
            "--advertise-client-urls",
            &endpoint,
            "--listen-peer-urls",
            &members,
            "--initial-advertise-peer-urls",
            &members,
            "--initial-cluster",
            &cluster,
        ];
        let service = Service::start(&self.node, &self.directory, &command, &[Port::Tcp(CLIENTS)])?;
        self.service = Some(service);
        Ok(())
    }

    /// Kills it at once.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(service) = self.service.take() {
            service.signal(Signal::SIGKILL)?;
        }
        Ok(())
    }

    /// Lets it go on listening and say nothing.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it answer again.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.service
            .as_ref()
            .map_or(Ok(()), |service| service.signal(signal))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // One that is stopped does not hear that it is to end.
        let _ = self.resume();
    }
}
