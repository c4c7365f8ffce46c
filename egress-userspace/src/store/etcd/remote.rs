//! Talking to etcd, from a thread of its own: whoever asks waits a bounded time, whatever etcd does.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, DeleteOptions, GetOptions, ResponseHeader, Txn,
    TxnOp, WatchOptions,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Mutex, watch};
use tokio::time::{sleep, timeout};

use super::content::{Content, GENERATION, OWNERSHIP};
use super::journal::{Condition, Transaction};
use super::tls::{Tls, file};
use crate::config::Etcd;
use crate::store::sqlite::Asked;

/// How long a question may take.
const PATIENCE: Duration = if cfg!(test) {
    // Tests are not about how fast a busy machine's disk is.
    Duration::from_secs(30)
} else {
    Duration::from_secs(3)
};
/// Between two attempts to hear of changes.
const AGAIN: Duration = Duration::from_secs(1);
/// Between two pings on a connection on which nothing is said. etcd takes those of less than five seconds for an attack, and
/// ends the connection (`--grpc-keepalive-min-time`).
const PING: Duration = Duration::from_secs(7);
const _: () = assert!(PING.as_secs() > 5);
/// A ping that is not answered within this time says that the connection is dead.
const PONG: Duration = Duration::from_secs(2);
/// Keys of one page: a row has a few hundred bytes, and a message may have 4 MiB.
const PAGE: i64 = 1_000;
/// Messages of the largest page: a row of a pool with thousands of addresses.
const LARGEST: usize = 256 << 20;

/// A connection to etcd.
pub(super) struct Remote {
    runtime: Option<Runtime>,
    link: Arc<Link>,
    changes: watch::Receiver<u64>,
}

/// What both threads use.
struct Link {
    endpoints: Vec<String>,
    options: ConnectOptions,
    prefix: String,
    tls: Option<Tls>,
    client: Mutex<Option<Client>>,
    /// Why changes are not heard of now, if they are not.
    deaf: std::sync::Mutex<Option<String>>,
}

type Outcome<T> = Result<T, String>;

impl Remote {
    /// Begins to listen to changes; connects when it can.
    pub(super) fn new(config: &Etcd) -> Outcome<Self> {
        // First, since a runtime that nobody takes must not be dropped inside of another one.
        let link = Arc::new(Link {
            endpoints: config.endpoints.clone(),
            options: options(config)?,
            prefix: format!("{}/", config.prefix),
            tls: Tls::of(config),
            client: Mutex::new(None),
            deaf: std::sync::Mutex::new(Some("not connected yet".to_owned())),
        });
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("etcd")
            .enable_all()
            .build()
            .map_err(|error| format!("cannot start its thread: {error}"))?;
        let (sender, changes) = watch::channel(0);
        runtime.spawn(listen(Arc::clone(&link), sender));
        Ok(Self {
            runtime: Some(runtime),
            link,
            changes,
        })
    }

    /// Tells of commits, and that etcd answers again.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// What tells why changes are not heard of now, if they are not: within seconds after etcd is gone.
    pub(super) fn deafness(&self) -> impl Fn() -> Option<String> + Send + Sync + use<> {
        let link = Arc::clone(&self.link);
        move || link.deaf().clone()
    }

    /// Everything under the prefix, at one revision, with what is pending.
    pub(super) fn read(&self) -> Outcome<Content> {
        let link = Arc::clone(&self.link);
        self.wait(async move { link.read().await })
    }

    /// The keys and values below this part of the prefix, which are few, without it.
    pub(super) fn under(&self, part: &str) -> Outcome<BTreeMap<String, String>> {
        let (link, part) = (Arc::clone(&self.link), part.to_owned());
        self.wait(async move { link.under(&part).await })
    }

    /// Makes a transaction: its revision, or none where its conditions do not hold.
    pub(super) fn transact(&self, transaction: &Transaction) -> Outcome<Option<i64>> {
        let (link, transaction) = (Arc::clone(&self.link), transaction.clone());
        self.wait(async move { link.transact(&transaction).await })
    }

    /// Waits for an answer without a runtime of this thread's: the caller may be inside of one.
    fn wait<T: Send + 'static>(
        &self,
        question: impl Future<Output = Outcome<T>> + Send + 'static,
    ) -> Outcome<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let Some(runtime) = &self.runtime else {
            return Err("the daemon is ending".to_owned());
        };
        runtime.spawn(async move {
            let answer = timeout(PATIENCE, question).await;
            let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")));
            let _ = sender.send(answer);
        });
        receiver
            .recv_timeout(PATIENCE * 2)
            .unwrap_or_else(|_| Err("its thread is busy".to_owned()))
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // Whoever drops this may be inside of another runtime, where nothing may wait.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Link {
    fn deaf(&self) -> MutexGuard<'_, Option<String>> {
        self.deaf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn said(&self, error: etcd_client::Error) -> String {
        said(error, self.tls.as_ref())
    }

    async fn client(&self) -> Outcome<Client> {
        let mut kept = self.client.lock().await;
        if let Some(client) = &*kept {
            return Ok(client.clone());
        }
        let client = Client::connect(&self.endpoints, Some(self.options.clone()))
            .await
            .map_err(|error| self.said(error))?;
        *kept = Some(client.clone());
        Ok(client)
    }

    async fn read(&self) -> Outcome<Content> {
        let asked = Asked::now();
        let kv = self.client().await?.kv_client();
        let mut kv = kv.max_decoding_message_size(LARGEST);
        let mut keys = BTreeMap::new();
        let (mut generation, mut revision) = (0, 0);
        let end = after(&self.prefix);
        let mut from = self.prefix.clone().into_bytes();
        loop {
            let mut options = GetOptions::new().with_range(end.clone()).with_limit(PAGE);
            if revision > 0 {
                options = options.with_revision(revision);
            }
            let page = kv.get(from.clone(), Some(options)).await;
            let mut page = page.map_err(|error| self.said(error))?;
            if revision == 0 {
                revision = page.header().map_or(0, ResponseHeader::revision);
            }
            let more = page.more();
            for row in page.take_kvs() {
                from = row.key().to_vec();
                from.push(0);
                let key = text(row.key())?;
                let key = key.strip_prefix(&self.prefix).unwrap_or(key).to_owned();
                if key == GENERATION {
                    generation = row.mod_revision();
                }
                keys.insert(key, text(row.value())?.to_owned());
            }
            if !more {
                break;
            }
        }
        Ok(Content {
            keys,
            generation,
            revision,
            told: asked.clone(),
            asked,
        })
    }

    async fn under(&self, part: &str) -> Outcome<BTreeMap<String, String>> {
        let prefix = format!("{}{part}", self.prefix);
        let mut kv = self.client().await?.kv_client();
        let options = GetOptions::new().with_prefix();
        let page = kv.get(prefix.clone(), Some(options)).await;
        let mut page = page.map_err(|error| self.said(error))?;
        let mut found = BTreeMap::new();
        for row in page.take_kvs() {
            let key = text(row.key())?;
            let key = key.strip_prefix(&prefix).unwrap_or(key).to_owned();
            found.insert(key, text(row.value())?.to_owned());
        }
        Ok(found)
    }

    async fn transact(&self, transaction: &Transaction) -> Outcome<Option<i64>> {
        let key = |name: &str| format!("{}{name}", self.prefix);
        let conditions: Vec<Compare> = transaction
            .conditions
            .iter()
            .map(|condition| match condition {
                Condition::Generation(revision) => {
                    Compare::mod_revision(key(GENERATION), CompareOp::Equal, *revision)
                }
                Condition::Value(name, Some(value)) => {
                    Compare::value(key(name), CompareOp::Equal, value.as_str())
                }
                Condition::Value(name, None) => {
                    Compare::create_revision(key(name), CompareOp::Equal, 0)
                }
                Condition::Pending(name) => Compare::value(
                    key(super::content::PENDING),
                    CompareOp::Equal,
                    name.as_str(),
                ),
            })
            .collect();
        let mut ops: Vec<TxnOp> = transaction
            .ops
            .iter()
            .map(|(name, value)| match value {
                Some(value) => TxnOp::put(key(name), value.as_str(), None),
                None => TxnOp::delete(key(name), None),
            })
            .collect();
        let below = |prefix: &String| {
            let all = DeleteOptions::new().with_prefix();
            TxnOp::delete(key(prefix), Some(all))
        };
        ops.extend(transaction.prune.iter().map(below));
        let txn = Txn::new().when(conditions).and_then(ops);
        let answer = self.client().await?.txn(txn).await;
        let answer = answer.map_err(|error| self.said(error))?;
        let revision = answer.header().map_or(0, ResponseHeader::revision);
        Ok(answer.succeeded().then_some(revision))
    }
}

/// Tells of every change of the generation, for as long as somebody listens.
async fn listen(link: Arc<Link>, sender: watch::Sender<u64>) {
    while !sender.is_closed() {
        let outcome = hear(&link, &sender).await;
        let reason = outcome
            .err()
            .unwrap_or_else(|| "it ended the connection".to_owned());
        // Said when changes are heard of no more; the next one is that it answers again.
        if link.deaf().replace(reason.clone()).is_none() {
            tracing::warn!(
                reason,
                "etcd is lost: configuration and ownership are frozen, connections go on"
            );
        }
        sleep(AGAIN).await;
    }
}

async fn hear(link: &Link, sender: &watch::Sender<u64>) -> Outcome<()> {
    let key = format!("{}{GENERATION}", link.prefix);
    let mut client = link.client().await?;
    let options = WatchOptions::new().with_progress_notify();
    let begun = timeout(PATIENCE, client.watch(key, Some(options))).await;
    let mut stream = begun
        .map_err(|_| "no answer".to_owned())?
        .map_err(|error| link.said(error))?;
    let key = format!("{}{OWNERSHIP}", link.prefix);
    let options = WatchOptions::new().with_prefix();
    let begun = stream.watch(key, Some(options)).await;
    begun.map_err(|error| link.said(error))?;
    *link.deaf() = None;
    // Whatever was committed until now was not heard.
    sender.send_modify(|count| *count += 1);
    while let Some(message) = stream.message().await.map_err(|error| link.said(error))? {
        if message.canceled() {
            return Err(message.cancel_reason().to_owned());
        }
        // The watch that was asked for second begins with its own message: what came before was not heard.
        if message.created() || !message.events().is_empty() {
            sender.send_modify(|count| *count += 1);
        }
    }
    Ok(())
}

fn options(config: &Etcd) -> Outcome<ConnectOptions> {
    let mut options = ConnectOptions::new()
        .with_timeout(PATIENCE)
        .with_connect_timeout(PATIENCE)
        .with_keep_alive(PING, PONG)
        .with_keep_alive_while_idle(true)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some(user) = &config.user {
        let password = match &config.password_file {
            Some(path) => String::from_utf8_lossy(&file(path)?).trim_end().to_owned(),
            None => String::new(),
        };
        options = options.with_user(user, password);
    }
    if let Some(tls) = Tls::of(config) {
        options = options.with_tls(tls.options()?);
    }
    Ok(options)
}

/// The first key behind all those that begin with a prefix.
fn after(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // The prefix ends with a slash.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

fn text(bytes: &[u8]) -> Outcome<&str> {
    std::str::from_utf8(bytes).map_err(|_| "it holds something that is no text".to_owned())
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn said(error: etcd_client::Error, tls: Option<&Tls>) -> String {
    let etcd_client::Error::GRpcStatus(status) = &error else {
        return error.to_string();
    };
    let mut text = status.message().to_owned();
    // What it comes from says more than the layers between.
    let mut cause = std::error::Error::source(status);
    while let Some(inner) = cause {
        cause = inner.source();
        if cause.is_none() && !text.contains(&inner.to_string()) {
            text = format!("{text}: {inner}");
        }
    }
    if let Some(explained) = tls.and_then(|tls| tls.explain(&text)) {
        return explained;
    }
    if text.starts_with("tls handshake eof") {
        text.push_str(" (it does not speak TLS: http:// instead of https://?)");
    } else if text.starts_with("h2 protocol error") || text.starts_with("transport error") {
        text.push_str(" (it does not speak as etcd does: https:// instead of http://, or something else there?)");
    }
    text
}
