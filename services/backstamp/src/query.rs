//! `backstamp query`: the two endpoints from Scylla.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use clap::Args;
use event_store::EventStore;
use query::Query;

use crate::options::{LimitOptions, RetentionOptions, ScyllaOptions};
use crate::run::{self, Service, listen};

/// The two endpoints from Scylla. Run as many as wanted.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    scylla: ScyllaOptions,
    #[command(flatten)]
    retention: RetentionOptions,
    #[command(flatten)]
    limit: LimitOptions,
    /// Where the endpoints are served.
    #[arg(long, env = "BACKSTAMP_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where /metrics, /livez and /readyz are served.
    #[arg(long, env = "BACKSTAMP_OPS_LISTEN", default_value = "127.0.0.1:9464")]
    ops_listen: SocketAddr,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let service = Service::start("query")?;
    let api = listen(options.listen).await?;
    let (ops_listener, ops) = listen(options.ops_listen).await?;
    let serving_ops = service.serve(ops_listener, telemetry::ops::router(service.health.clone()));
    let mut shown = Arc::new(AtomicI64::new(i64::MIN));
    let (rate_limit, retention_days) = (options.limit.rate_limit, options.retention.retention_days);
    let build = |store: Arc<dyn EventStore>, shutdown| {
        let until = Arc::new(AtomicI64::new(i64::MIN));
        let (service, before) = (service.clone(), std::mem::replace(&mut shown, until.clone()));
        let partitions = event_log::CAMPAIGN_EVENTS_PARTITIONS;
        async move {
            let fresh = run::wait_until_as_fresh(store.as_ref(), partitions, &before, &service.clock).await;
            until.store(fresh, Ordering::Relaxed);
            let (door, _) = service.doors(&store, rate_limit);
            let visible = run::follow_progress(store.clone(), partitions, until, shutdown).await;
            let door = door.showing(visible);
            let query = Arc::new(Query::new(store, service.clock.clone(), retention_days));
            edge::app(query::router(query, &door), &door)
        }
    };
    service.serve_live(&options.scylla.config(), api, ops, build).await?;
    serving_ops.await?;
    Ok(())
}
