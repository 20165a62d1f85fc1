//! `backstamp replay`: rebuilds all projections from the log into a new keyspace beside the live one, and compares the two.
//!
//! It is `ingest` itself, with a consumer group and an internal topic of its own, so what is rebuilt is right for the same reasons,
//! and an interrupted replay goes on where its group's offsets are. Services are moved to the new keyspace by restarting them with it:
//! that can be done one by one, and undone.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use event_log::{KafkaConfig, Topic, TopicSettings};
use event_store::EventStore;
use event_store::scylla::{ScyllaConfig, ScyllaStore, apply_schema};
use futures::stream::{self, StreamExt, TryStreamExt};
use ingest::IngestSettings;
use query::read::{PageRequest, read_page};
use serde_json::json;
use timeline::{Span, TimelineId, Timestamp, TypeSet};

use crate::caught_up::{behind, wait_until_done};
use crate::options::{FilterOptions, PipelineOptions};
use crate::progress::Progress;
use crate::run::{Service, say};

/// How often it is looked how far the replay is.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Timelines that are compared at a time.
const COMPARED_AT_ONCE: usize = 32;
/// How often timelines that differ are compared again, and how long to wait before that: events come in meanwhile.
const COMPARE_TRIES: u32 = 5;
/// Differences that are printed.
const SHOWN_MAX: usize = 100;

/// Rebuilds all projections from the log into a new keyspace beside the live one, at a bounded rate, and compares both. It can be stopped and
/// run again at any time: it goes on where it was. Prints how to move the services over.
#[derive(Args)]
pub(crate) struct Options {
    /// The new keyspace. It is made if it is not there.
    #[arg(long)]
    to: String,
    /// Messages of mail.events that are replayed in a second.
    #[arg(long, default_value = "5000")]
    records_per_second: NonZeroU32,
    #[command(flatten)]
    pipeline: PipelineOptions,
    #[command(flatten)]
    filter: FilterOptions,
    /// Copies of everything that is made: by default 3, or as many as there are nodes if there are fewer.
    #[arg(long, env = "BACKSTAMP_REPLICATION_FACTOR", value_parser = clap::value_parser!(u32).range(1..=100))]
    replication_factor: Option<u32>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    if options.to == options.pipeline.scylla.keyspace {
        bail!("--to is the keyspace that is live");
    }
    let service = Service::start("replay")?;
    let live_kafka = options.pipeline.kafka("backstamp-replay")?;
    let kafka = KafkaConfig {
        group: format!("{}-{}", options.pipeline.group, options.to),
        internal_prefix: format!("{}.", options.to),
        ..live_kafka.clone()
    };
    let live = ScyllaStore::connect(&options.pipeline.scylla.config()).await?;
    let config = ScyllaConfig { keyspace: options.to.clone(), ..options.pipeline.scylla.config() };
    apply_schema(&config, options.replication_factor).await?;
    let settings = TopicSettings {
        replication: options.replication_factor.and_then(|copies| i32::try_from(copies).ok()),
        retention_days: options.pipeline.retention.retention_days,
        ..TopicSettings::default()
    };
    event_log::ensure_topics(&kafka, &settings).await?;
    let new = Arc::new(ScyllaStore::connect(&config).await?);
    // What the log does not know. Contacts that were forgotten come first of all.
    live.copy_what_the_log_lacks(&new).await?;

    let settings = IngestSettings {
        retention_ms: options.pipeline.retention.retention_ms(),
        filter: options.filter.list_management_urls.clone(),
        replay_per_second_max: Some(options.records_per_second),
    };
    let ingesting = tokio::spawn({
        let (kafka, store, clock) = (kafka.clone(), new.clone(), service.clock.clone());
        let (health, shutdown) = (service.health.clone(), service.shutdown.clone());
        async move {
            let done = ingest::kafka::run(&kafka, store, &settings, clock, &health, &shutdown).await;
            shutdown.begin();
            done
        }
    });
    let compared = tokio::select! {
        () = service.shutdown.begun() => None,
        compared = Box::pin(follow_and_compare(&options, &live_kafka, &kafka, &live, &new, (service.clock)())) => {
            Some(compared)
        }
    };
    service.shutdown.begin();
    ingesting.await??;
    let Some(compared) = compared else {
        bail!("stopped before it was done: run it again, and it goes on where it was");
    };
    let Compared { timelines, differences, replayed } = compared?;
    live.copy_what_the_log_lacks(&new).await?;
    if options.json {
        say(&json!({
            "keyspace": options.to,
            "group": kafka.group,
            "internal_prefix": kafka.internal_prefix,
            "records": replayed,
            "timelines_compared": timelines,
            "differences": differences,
        })
        .to_string());
    } else {
        differences.iter().for_each(|difference| say(&format!("difference  {difference}")));
        say(&format!("{replayed} messages replayed, {timelines} timelines compared"));
        if differences.is_empty() {
            say(&format!(
                "To move over: start ingest with --keyspace {0} --group {1} --internal-prefix {2}, restart query and collect with \
                 --keyspace {0}; then, with the lag of the old ingest at 0, stop it. Keys that were made meanwhile: run this once more before.",
                options.to, kafka.group, kafka.internal_prefix
            ));
        }
    }
    match differences.len() {
        0 => Ok(()),
        count => bail!("{count} timelines differ: nothing was moved over"),
    }
}

struct Compared {
    timelines: u64,
    differences: Vec<String>,
    replayed: i64,
}

/// Waits until the replay has come to where the log ends, then compares the two.
async fn follow_and_compare(
    options: &Options,
    live_kafka: &KafkaConfig,
    kafka: &KafkaConfig,
    live: &ScyllaStore,
    new: &ScyllaStore,
    now: Timestamp,
) -> anyhow::Result<Compared> {
    let bounds = event_log::bounds(kafka, Topic::Events).await?;
    let total: i64 = bounds.values().map(|(start, end)| end - start).sum();
    let progress = Progress::new("messages replayed", u64::try_from(total).unwrap_or(0));
    loop {
        let left = behind(kafka, Topic::Events).await? + behind(kafka, Topic::References).await?;
        progress.at(u64::try_from(total - left).unwrap_or(0));
        if left == 0 {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    progress.finish();
    wait_until_done(kafka, Topic::CampaignEvents).await?;
    let shown_since = now.minus_ms(options.pipeline.retention.retention_ms()).plus_ms(MARGIN_MS);
    let mut ids: BTreeSet<TimelineId> = live.list_timelines().await?.into_iter().collect();
    ids.extend(new.list_timelines().await?);
    let timelines = ids.len() as u64;
    let mut differences = Vec::new();
    for attempt in 1..=COMPARE_TRIES {
        differences = compare(live, new, &ids, shown_since).await?;
        if differences.is_empty() || attempt == COMPARE_TRIES {
            break;
        }
        // What came in meanwhile is to be in both.
        for (kafka, topic) in [
            (live_kafka, Topic::Events),
            (kafka, Topic::Events),
            (live_kafka, Topic::CampaignEvents),
            (kafka, Topic::CampaignEvents),
        ] {
            wait_until_done(kafka, topic).await.context("both must keep up to be compared")?;
        }
        ids = differences.iter().map(|(id, _)| id.clone()).collect();
    }
    let shown = |(id, what): &(TimelineId, String)| format!("{} {}: {what}", id.account, id.subject);
    Ok(Compared {
        timelines,
        replayed: total,
        differences: differences.iter().take(SHOWN_MAX).map(shown).collect(),
    })
}

/// Rows that expire while both are compared are left out.
const MARGIN_MS: i64 = 3_600_000;

/// What the two say of timelines, where they differ: totals, the newest page and the oldest.
async fn compare(
    live: &ScyllaStore,
    new: &ScyllaStore,
    ids: &BTreeSet<TimelineId>,
    shown_since: Timestamp,
) -> anyhow::Result<Vec<(TimelineId, String)>> {
    let ids: Vec<TimelineId> = ids.iter().cloned().collect();
    let compared: Vec<Option<(TimelineId, String)>> = stream::iter(ids)
        .map(|id| async move {
            if live.is_known(&id).await? != new.is_known(&id).await? {
                return Ok::<_, anyhow::Error>(Some((id, "is known in one of them alone".to_owned())));
            }
            let (one, other) =
                (summary(live, &id, shown_since).await?, summary(new, &id, shown_since).await?);
            Ok((one != other).then(|| (id, format!("live has {one:?}, new has {other:?}"))))
        })
        .buffer_unordered(COMPARED_AT_ONCE)
        .try_collect()
        .await?;
    Ok(compared.into_iter().flatten().collect())
}

/// How many rows there are, and the newest and the oldest of them.
async fn summary(
    store: &dyn EventStore,
    id: &TimelineId,
    shown_since: Timestamp,
) -> anyhow::Result<(u64, Vec<String>)> {
    let mut request = PageRequest {
        types: TypeSet::CAMPAIGN.or(TypeSet::CONTACT),
        span: Span::of_times(shown_since, Timestamp(i64::MAX - 1)),
        campaign: None,
        offset: 0,
        limit: 5,
    };
    let newest = read_page(store, id, &request).await?;
    let mut rows = newest.rows;
    if newest.total > 5 {
        request.offset = newest.total - 5;
        rows.extend(read_page(store, id, &request).await?.rows);
    }
    let told = rows.iter().map(|row| {
        let (key, body) = (&row.key, &row.body);
        format!(
            "{} {} {} {:?}",
            key.position.at.to_rfc3339(),
            key.position.id,
            key.event_type.name(),
            body.campaign
        )
    });
    Ok((newest.total, told.collect()))
}
