//! `backstamp collect`: HTTP intake to Kafka.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Args;
use collect::Collect;
use event_log::{KafkaAppender, Topic};
use event_store::EventStore;

use crate::options::{KafkaOptions, LimitOptions, ScyllaOptions};
use crate::run::{Service, listen};

/// HTTP intake to Kafka; keys are read from Scylla. Run as many as wanted.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    kafka: KafkaOptions,
    #[command(flatten)]
    scylla: ScyllaOptions,
    #[command(flatten)]
    limit: LimitOptions,
    /// Where the intake is served.
    #[arg(long, env = "BACKSTAMP_LISTEN", default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    /// Where /metrics, /livez and /readyz are served.
    #[arg(long, env = "BACKSTAMP_OPS_LISTEN", default_value = "127.0.0.1:9465")]
    ops_listen: SocketAddr,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let service = Service::start("collect")?;
    let kafka = options.kafka.config("backstamp-collect", "")?;
    let api = listen(options.listen).await?;
    let (ops_listener, ops) = listen(options.ops_listen).await?;
    let serving_ops = service.serve(ops_listener, telemetry::ops::router(service.health.clone()));
    let appender = Arc::new(KafkaAppender::new(&kafka, &[Topic::Events, Topic::References])?);
    service.watch_log(appender.clone());
    let rate_limit = options.limit.rate_limit;
    let build = |store: Arc<dyn EventStore>, _| {
        let (_, door) = service.doors(&store, rate_limit);
        let collect = Arc::new(Collect::new(appender.clone(), service.clock.clone()));
        std::future::ready(edge::app(collect::router(collect, &door), &door))
    };
    service.serve_live(&options.scylla.config(), api, ops, build).await?;
    serving_ops.await?;
    Ok(())
}
