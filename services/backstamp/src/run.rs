//! What every service does: a clock, two listeners, one ready line, and an orderly end.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use axum::Router;
use axum::extract::Request;
use edge::{Clock, Door, Keys, Limiter, RateLimit};
use event_log::Appender;
use event_store::scylla::{ScyllaConfig, ScyllaStore};
use event_store::{EventStore, Stage, StoreError};
use telemetry::health::Health;
use telemetry::metrics::VISIBLE_UNTIL;
use telemetry::shutdown::Shutdown;
use timeline::Timestamp;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower::ServiceExt;

/// How long to wait before Scylla is tried again at the start.
const CONNECT_RETRY: Duration = Duration::from_secs(2);
/// How often readiness is looked at.
const CHECK_EVERY: Duration = Duration::from_secs(2);

/// How often it is read until when everything is visible.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);
/// Connections that wait to be accepted: as many as may come at once.
const BACKLOG: u32 = 4096;
/// How often it is looked which keyspace is live.
const FOLLOW_LIVE_EVERY: Duration = Duration::from_secs(2);
/// How long that may fail before the service is not ready, and what the check is called.
const FOLLOW_LIVE_MAX: Duration = Duration::from_secs(30);
const LIVE: &str = "live_keyspace";
/// How long after one service sees another keyspace live all have seen it, in milliseconds.
const ALL_FOLLOWED_MS: i64 = 4_000;
/// How long a keyspace that has become live may take to be as far as the one before.
const FRESH_WAIT_MAX: Duration = Duration::from_secs(25);

/// The system's clock, which is handed to all that tell the time of events.
pub(crate) fn system_clock() -> Clock {
    Arc::new(|| {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    })
}

/// What a service starts with. Clones are one.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) name: &'static str,
    pub(crate) clock: Clock,
    pub(crate) shutdown: Shutdown,
    pub(crate) health: Health,
}

impl Service {
    pub(crate) fn start(name: &'static str) -> anyhow::Result<Service> {
        // Each connection is an open file. What a shell starts may have 1024 of them, and as many as it asks for up to a bound.
        if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
            tracing::warn!(%error, "the number of open files stays as it is");
        }
        let shutdown = Shutdown::on_signals().context("signals cannot be listened to")?;
        Ok(Service { name, clock: system_clock(), health: Health::new(&shutdown), shutdown })
    }

    /// Doors that `store`'s keys open: for reads, and for the intake.
    pub(crate) fn doors(&self, store: &Arc<dyn EventStore>, limit: RateLimit) -> (Door, Door) {
        let keys = Keys::new(store.clone(), self.clock.clone());
        let door = || Door::new(keys.clone(), Limiter::new(limit, self.clock.clone()));
        (door(), door())
    }

    /// Connects to Scylla, trying until it is there with all tables; `None` where the process was told to stop first.
    async fn connect(&self, config: &ScyllaConfig) -> Option<Arc<ScyllaStore>> {
        let check = self.health.check("store");
        loop {
            let connected = async {
                let store = ScyllaStore::connect(config).await?;
                store.check().await?;
                Ok::<_, event_store::StoreError>(store)
            };
            let failed = tokio::select! {
                () = self.shutdown.begun() => return None,
                connected = connected => match connected {
                    Ok(store) => {
                        check.pass();
                        return Some(Arc::new(store));
                    }
                    Err(error) => error,
                },
            };
            tracing::warn!(error = %failed.chain(), "the store is not ready, trying again");
            check.fail("away, or its tables are missing");
            tokio::select! {
                () = self.shutdown.begun() => return None,
                () = tokio::time::sleep(CONNECT_RETRY) => {}
            }
        }
    }

    /// Runs `round` on the keyspace that is live, once it is there with all tables, and says that the service is ready. Where another
    /// keyspace becomes live, a round on that one is run, and once it has begun the one before is told to end, which the new one can
    /// await. Returns when the process is told to stop and the last round has ended, or when one fails.
    pub(crate) async fn follow_live<F>(
        &self,
        config: &ScyllaConfig,
        say_ready: impl FnOnce(),
        mut round: impl FnMut(Round) -> F,
    ) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let Some(mut store) = self.connect(config).await else { return Ok(()) };
        self.health.check(LIVE).pass();
        let mut say_ready = Some(say_ready);
        let mut before: Option<(Shutdown, JoinHandle<anyhow::Result<()>>)> = None;
        loop {
            let shutdown = self.shutdown.child();
            let (begun, has_begun) = oneshot::channel();
            let (ended, before_ended) = oneshot::channel();
            let (new, told) = (store.clone(), shutdown.clone());
            let mut running = tokio::spawn(round(Round { store: new, shutdown: told, begun, before_ended }));
            // Where it ends without having begun, that is told below.
            let _ = has_begun.await;
            if let Some(say_ready) = say_ready.take() {
                say_ready();
            }
            if let Some((shutdown, running)) = before.take() {
                shutdown.begin();
                running.await??;
            }
            // Who does not wait for it has dropped it.
            let _ = ended.send(());
            tokio::select! {
                ended = &mut running => return ended?,
                moved = self.moved(config, &store) => match moved {
                    None => return running.await?,
                    Some(moved) => {
                        store = moved;
                        before = Some((shutdown, running));
                    }
                },
            }
        }
    }

    /// Serves the API at `listener` by the app that `build` makes of the keyspace that is live, see [`Service::follow_live`]: connections
    /// stay where another becomes live, and requests that have begun end with the app that they began with.
    pub(crate) async fn serve_live<F>(
        &self,
        config: &ScyllaConfig,
        (listener, api): (TcpListener, SocketAddr),
        ops: SocketAddr,
        mut build: impl FnMut(Arc<dyn EventStore>, Shutdown) -> F,
    ) -> anyhow::Result<()>
    where
        F: Future<Output = Router> + Send + 'static,
    {
        let (current, mut serving) = (Current::default(), None);
        let say_ready = || {
            serving = Some(self.serve(listener, current.router()));
            self.say_ready(Some(api), ops);
        };
        let round = |Round { store, shutdown, begun, .. }| {
            let store: Arc<dyn EventStore> = store;
            let (service, current) = (self.clone(), current.clone());
            let app = build(store.clone(), shutdown.clone());
            async move {
                tokio::select! {
                    () = shutdown.begun() => return Ok(()),
                    app = app => current.put(app),
                }
                service.watch_store(&store, &shutdown);
                // Who waits for it may be gone.
                let _ = begun.send(());
                shutdown.begun().await;
                Ok(())
            }
        };
        self.follow_live(config, say_ready, round).await?;
        if let Some(serving) = serving {
            serving.await?;
        }
        Ok(())
    }

    /// Connects to another keyspace once that is live; `None` when the process is told to stop.
    async fn moved(&self, config: &ScyllaConfig, from: &ScyllaStore) -> Option<Arc<ScyllaStore>> {
        let (check, mut well) = (self.health.check(LIVE), Instant::now());
        loop {
            tokio::select! {
                () = self.shutdown.begun() => return None,
                () = tokio::time::sleep(FOLLOW_LIVE_EVERY) => {}
            }
            match self.moved_to(config, from).await {
                Ok(moved) => {
                    well = Instant::now();
                    check.pass();
                    if moved.is_some() {
                        return moved;
                    }
                }
                Err(error) => {
                    let from = &from.live().keyspace;
                    tracing::warn!(error = %error.chain(), from, "cannot follow to what is live, trying again");
                    // Whoever goes on from a keyspace that nobody fills any more is not to be asked.
                    if well.elapsed() > FOLLOW_LIVE_MAX {
                        check.fail("what is live cannot be followed");
                    }
                }
            }
        }
    }

    /// Connects to the keyspace that is live, where it is another one.
    async fn moved_to(
        &self,
        config: &ScyllaConfig,
        from: &ScyllaStore,
    ) -> Result<Option<Arc<ScyllaStore>>, StoreError> {
        if from.read_live().await? == *from.live() {
            return Ok(None);
        }
        let store = ScyllaStore::connect(config).await?;
        let (from, to) = (&from.live().keyspace, &store.live().keyspace);
        tracing::info!(from, to, "moving to another keyspace");
        Ok(Some(Arc::new(store)))
    }

    /// Keeps the check of the store up to date, until `shutdown`.
    pub(crate) fn watch_store(&self, store: &Arc<dyn EventStore>, shutdown: &Shutdown) {
        let (store, shutdown) = (store.clone(), shutdown.clone());
        let probe = async move || store.check().await.map_err(|error| error.chain().to_string());
        let checks = self.health.check("store").keep(CHECK_EVERY, "away, or its tables are missing", probe);
        let checks = tokio::spawn(checks);
        tokio::spawn(async move {
            shutdown.begun().await;
            checks.abort();
        });
    }

    /// Keeps the check of the log up to date.
    pub(crate) fn watch_log(&self, log: Arc<dyn Appender>) {
        let probe = async move || log.check().await.map_err(|error| error.chain());
        tokio::spawn(self.health.check("log").keep(CHECK_EVERY, "away, or it takes nothing", probe));
    }

    /// Serves `router` in the background until the process is told to stop and every request is answered.
    pub(crate) fn serve(&self, listener: TcpListener, router: Router) -> tokio::task::JoinHandle<()> {
        tokio::spawn(edge::serve(listener, router, self.shutdown.clone()))
    }

    /// The one line on standard output that says where the service is. Who does not read it any more does not stop the service.
    pub(crate) fn say_ready(&self, api: Option<SocketAddr>, ops: SocketAddr) {
        let api = api.map_or_else(String::new, |api| format!("http://{api} "));
        say(&format!("backstamp {} is ready: {api}(ops http://{ops})", self.name));
    }
}

/// A service's work on one keyspace.
pub(crate) struct Round {
    pub(crate) store: Arc<ScyllaStore>,
    /// Told when this round is to end, with the process or before it.
    pub(crate) shutdown: Shutdown,
    /// To be told once it is under way.
    pub(crate) begun: oneshot::Sender<()>,
    /// Told once the round before has ended, at once where there was none.
    pub(crate) before_ended: oneshot::Receiver<()>,
}

/// Waits until a keyspace is as far as what was shown already, before it is shown in its place; not for ever, and then what is
/// shown goes back.
///
/// The keyspace before shows more than is told of it, and is filled until every ingest has seen, too, that another one is live. While it is,
/// what is `shown` of it goes on; so this one has to be ahead of that by as long as they take to see it, and have come to about when they all
/// should have. Then what the other one shows was published before. Returns until when this one shows everything.
pub(crate) async fn wait_until_as_fresh(
    store: &dyn EventStore,
    partitions: i32,
    shown: &AtomicI64,
    clock: &Clock,
) -> i64 {
    let (begun, asked_at) = (Instant::now(), clock().0);
    loop {
        let shown = shown.load(Ordering::Relaxed);
        let progress = store.read_progress(Stage::Own).await;
        let least = progress.as_ref().ok().and_then(|progress| ingest::least(progress, partitions));
        let until = least.map_or(i64::MIN, |least| least.0);
        if shown == i64::MIN || until >= shown.max(asked_at).saturating_add(ALL_FOLLOWED_MS) {
            return until;
        }
        if begun.elapsed() > FRESH_WAIT_MAX {
            let error = progress.err().map(|error| error.chain().to_string());
            tracing::warn!(error, "the keyspace to move to stays behind the one before: moving all the same");
            return until;
        }
        tokio::time::sleep(FOLLOW_EVERY).await;
    }
}

/// Until when everything that was published is visible, `until`: what the ingests tell of the second stage's `partitions`, read
/// once here and then every second. It never goes back, and stays where the store fails.
pub(crate) async fn follow_progress(
    store: Arc<dyn EventStore>,
    partitions: i32,
    until: Arc<AtomicI64>,
    shutdown: Shutdown,
) -> edge::VisibleUntil {
    let shown = until.clone();
    let read = async move || match store.read_progress(Stage::Own).await {
        Ok(progress) => {
            if let Some(least) = ingest::least(&progress, partitions) {
                let until = until.fetch_max(least.0, Ordering::Relaxed).max(least.0);
                VISIBLE_UNTIL.with_label_values(&[] as &[&str]).set(until as f64 / 1000.0);
            }
        }
        Err(error) => tracing::debug!(error = %error.chain(), "it cannot be read how far ingest is"),
    };
    read().await;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = shutdown.begun() => return,
                () = tokio::time::sleep(FOLLOW_EVERY) => read().await,
            }
        }
    });
    Arc::new(move || Some(Timestamp(shown.load(Ordering::Relaxed))).filter(|until| until.0 != i64::MIN))
}

/// Prints a line to standard output, whether or not anybody reads it.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // As the standard library does: a port is free again at once.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Listens on `address`, or says why that cannot be.
pub(crate) async fn listen(address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = bind(address).with_context(|| format!("cannot listen on {address}"))?;
    let bound = listener.local_addr().context("a listener has an address")?;
    Ok((listener, bound))
}

/// An app in whose place another is put while it serves: connections stay, requests that have begun end with the one they began with.
#[derive(Clone, Default)]
struct Current(Arc<RwLock<Router>>);

impl Current {
    fn put(&self, app: Router) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = app;
    }

    /// What is to be served.
    fn router(&self) -> Router {
        let current = self.clone();
        Router::new().fallback(async move |request: Request| {
            let app = current.0.read().unwrap_or_else(PoisonError::into_inner).clone();
            app.oneshot(request).await
        })
    }
}
