//! What every service does: a clock, two listeners, one ready line, and an orderly end.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use axum::Router;
use edge::{Clock, Door, Keys, Limiter, RateLimit};
use event_store::scylla::{ScyllaConfig, ScyllaStore};
use event_store::{EventStore, Stage};
use telemetry::health::Health;
use telemetry::metrics::VISIBLE_UNTIL;
use telemetry::shutdown::Shutdown;
use timeline::Timestamp;
use tokio::net::TcpListener;

/// How long to wait before Scylla is tried again at the start.
const CONNECT_RETRY: Duration = Duration::from_secs(2);
/// How often readiness is looked at.
const CHECK_EVERY: Duration = Duration::from_secs(2);

/// How often it is read until when everything is visible.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);

/// The system's clock: the only place that reads it.
pub(crate) fn system_clock() -> Clock {
    Arc::new(|| {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    })
}

/// What a service starts with.
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
    pub(crate) async fn connect(&self, config: &ScyllaConfig) -> Option<Arc<dyn EventStore>> {
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

    /// Keeps the check of the store up to date.
    pub(crate) fn watch_store(&self, store: &Arc<dyn EventStore>) {
        let store = store.clone();
        tokio::spawn(self.health.check("store").keep(CHECK_EVERY, async move || {
            store.check().await.map_err(|error| {
                tracing::warn!(error = %error.chain(), "the store does not answer as it should");
                "away, or its tables are missing"
            })
        }));
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

/// Until when everything that was published is visible: what the ingests tell of the second stage's `partitions`, read once here and
/// then every second. It never goes back, and stays where the store fails.
pub(crate) async fn follow_progress(
    store: Arc<dyn EventStore>,
    partitions: i32,
    shutdown: Shutdown,
) -> edge::VisibleUntil {
    let until = Arc::new(AtomicI64::new(i64::MIN));
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

/// Listens on `address`, or says why that cannot be.
pub(crate) async fn listen(address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let bound = listener.local_addr().context("a listener has an address")?;
    Ok((listener, bound))
}
