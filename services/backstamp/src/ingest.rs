//! `backstamp ingest`: Kafka to Scylla.

use std::net::SocketAddr;

use clap::Args;
use ingest::IngestSettings;

use crate::options::{FilterOptions, PipelineOptions, kafka_of};
use crate::run::{Round, Service, listen};

/// Kafka to Scylla: decodes, filters, joins, counts. Run as many as wanted; they share the partitions.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pipeline: PipelineOptions,
    #[command(flatten)]
    filter: FilterOptions,
    /// Where /metrics, /livez and /readyz are served.
    #[arg(long, env = "BACKSTAMP_OPS_LISTEN", default_value = "127.0.0.1:9466")]
    ops_listen: SocketAddr,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let service = Service::start("ingest")?;
    let kafka = options.pipeline.kafka("backstamp-ingest")?;
    let (ops_listener, ops) = listen(options.ops_listen).await?;
    let serving = service.serve(ops_listener, telemetry::ops::router(service.health.clone()));
    let settings = IngestSettings {
        retention_ms: options.pipeline.retention.retention_ms(),
        filter: options.filter.list_management_urls,
        replay_per_second_max: None,
    };
    let say_ready = || service.say_ready(None, ops);
    let round = |Round { store, shutdown, begun, before_ended }| {
        let kafka = kafka_of(store.live(), kafka.clone());
        let (service, settings) = (service.clone(), settings.clone());
        async move {
            // Who waits for it may be gone.
            let _ = begun.send(());
            // How far this keyspace is told to be is of a time when the one before was not filled any more.
            let _ = before_ended.await;
            let Service { clock, health, .. } = service;
            Ok(ingest::kafka::run(&kafka, store, &settings, clock, &health, &shutdown).await?)
        }
    };
    service.follow_live(&options.pipeline.scylla.config(), say_ready, round).await?;
    serving.await?;
    Ok(())
}
