//! `backstamp dev`: everything in one process.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use collect::Collect;
use event_log::{Appender, EmbeddedLog};
use event_store::EventStore;
use event_store::embedded::EmbeddedStore;
use ingest::IngestSettings;
use query::Query;

use crate::admin;
use crate::demo;
use crate::keys::KeyStore;
use crate::options::{FilterOptions, LimitOptions, RetentionOptions};
use crate::run::{Service, listen};

/// Everything in one process on an embedded store: takes events over HTTP and serves both endpoints.
#[derive(Args)]
pub(crate) struct Options {
    /// Where everything is kept.
    #[arg(long, env = "BACKSTAMP_DATA", default_value = "./backstamp-data")]
    data: PathBuf,
    /// Adds a sample account with a history, and prints a key and commands to look at it.
    #[arg(long)]
    demo: bool,
    #[command(flatten)]
    retention: RetentionOptions,
    #[command(flatten)]
    limit: LimitOptions,
    #[command(flatten)]
    filter: FilterOptions,
    /// Where the intake and the endpoints are served.
    #[arg(long, env = "BACKSTAMP_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where /metrics, /livez and /readyz are served, and what `backstamp keys` talks to.
    #[arg(long, env = "BACKSTAMP_OPS_LISTEN", default_value = "127.0.0.1:9464")]
    ops_listen: SocketAddr,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let service = Service::start("dev")?;
    let (listener, api) = listen(options.listen).await?;
    let (ops_listener, ops) = listen(options.ops_listen).await?;
    let data = &options.data;
    fs::create_dir_all(data).with_context(|| format!("cannot create {}", data.display()))?;
    let log = Arc::new(EmbeddedLog::open(&data.join("log"), service.clock.clone())?);
    let embedded = Arc::new(EmbeddedStore::open(&data.join("store"))?);
    let store: Arc<dyn EventStore> = embedded.clone();
    let keys = KeyStore::new(store.clone(), service.clock.clone());
    let admin = admin::router(keys.clone(), admin::write_token(data)?);
    let serving_ops =
        service.serve(ops_listener, telemetry::ops::router(service.health.clone()).merge(admin));

    service.watch_store(&store, &service.shutdown);
    service.watch_log(log.clone());
    let settings = IngestSettings {
        retention_ms: options.retention.retention_ms(),
        filter: options.filter.list_management_urls.clone(),
        replay_per_second_max: None,
    };
    let visible =
        ingest::Visible::new(log.clone(), service.clock.clone(), embedded.committed_offset().await?);
    let visible = Arc::new(visible);
    let ingesting = tokio::spawn({
        let visible = visible.clone();
        let (log, store, clock, shutdown) =
            (log.clone(), embedded.clone(), service.clock.clone(), service.shutdown.clone());
        async move {
            let done = ingest::embedded::run(log, store, &settings, clock, &visible, &shutdown).await;
            // Without it nothing shows any more.
            shutdown.begin();
            done
        }
    });
    let appender: Arc<dyn Appender> = log.clone();
    let demo = match options.demo {
        true => Some(demo::load(&keys, &store, &embedded, &log, &service).await?),
        false => None,
    };

    let (door, intake_door) = service.doors(&store, options.limit.rate_limit);
    let door = door.showing(Arc::new(move || visible.until()));
    let query = Arc::new(Query::new(store, service.clock.clone(), options.retention.retention_days));
    let collect = Arc::new(Collect::new(appender, service.clock.clone()));
    let routes = query::router(query, &door).merge(collect::router(collect, &intake_door));
    let serving = service.serve(listener, edge::app(routes, &door));
    service.say_ready(Some(api), ops);
    if let Some(demo) = demo {
        demo.print(api);
    }
    serving.await?;
    ingesting.await??;
    serving_ops.await?;
    Ok(())
}
