//! `backstamp query`: the two endpoints from Scylla.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Args;
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
    let (listener, api) = listen(options.listen).await?;
    let (ops_listener, ops) = listen(options.ops_listen).await?;
    let serving_ops = service.serve(ops_listener, telemetry::ops::router(service.health.clone()));
    if let Some(store) = service.connect(&options.scylla.config()).await {
        service.watch_store(&store);
        let (door, _) = service.doors(&store, options.limit.rate_limit);
        let partitions = event_log::CAMPAIGN_EVENTS_PARTITIONS;
        let visible = run::follow_progress(store.clone(), partitions, service.shutdown.clone()).await;
        let door = door.showing(visible);
        let query = Arc::new(Query::new(store, service.clock.clone(), options.retention.retention_days));
        let serving = service.serve(listener, edge::app(query::router(query, &door), &door));
        service.say_ready(Some(api), ops);
        serving.await?;
    }
    serving_ops.await?;
    Ok(())
}
