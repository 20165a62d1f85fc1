//! `backstamp collect`: HTTP intake to Kafka.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use collect::Collect;
use event_log::{Appender, KafkaAppender, Topic};
use event_store::EventStore;

use crate::options::{KafkaOptions, LimitOptions, ScyllaOptions};
use crate::run::{Current, Round, Service, listen};

/// How often the log is looked at.
const CHECK_EVERY: Duration = Duration::from_secs(2);

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
    let (listener, api) = listen(options.listen).await?;
    let current = Current::default();
    let (ops_listener, ops) = listen(options.ops_listen).await?;
    let serving_ops = service.serve(ops_listener, telemetry::ops::router(service.health.clone()));
    let appender = Arc::new(KafkaAppender::new(&kafka, &[Topic::Events, Topic::References])?);
    let checked = appender.clone();
    tokio::spawn(service.health.check("log").keep(CHECK_EVERY, async move || checked.check().await));
    let rate_limit = options.limit.rate_limit;
    let mut serving = None;
    let say_ready = || {
        serving = Some(service.serve(listener, current.router()));
        service.say_ready(Some(api), ops);
    };
    let round = |Round { store, shutdown, begun }| {
        let (service, current, appender) = (service.clone(), current.clone(), appender.clone());
        async move {
            let store: Arc<dyn EventStore> = store;
            service.watch_store(&store, &shutdown);
            let (_, door) = service.doors(&store, rate_limit);
            let collect = Arc::new(Collect::new(appender, service.clock.clone()));
            let app = edge::app(collect::router(collect, &door), &door);
            current.put(app);
            // Who waits for it may be gone.
            let _ = begun.send(());
            shutdown.begun().await;
            Ok(())
        }
    };
    service.follow_live(&options.scylla.config(), say_ready, round).await?;
    if let Some(serving) = serving {
        serving.await?;
    }
    serving_ops.await?;
    Ok(())
}
