//! `backstamp replay`: rebuilds all projections from the log into a new keyspace beside the live one, and compares the two.
//!
//! It is `ingest` itself, with a consumer group and an internal topic of its own, so what is rebuilt is right for the same reasons,
//! and an interrupted replay goes on where its group's offsets are. Services are moved by a word in the keyspace that they were
//! given, which they look at every two seconds: see [`Service::follow_live`].

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use event_log::{KafkaConfig, Topic, TopicSettings};
use event_store::EventStore;
use event_store::scylla::{Live, ScyllaConfig, ScyllaStore, apply_schema};
use futures::stream::{self, StreamExt, TryStreamExt};
use ingest::IngestSettings;
use query::read::{PageRequest, read_page};
use serde_json::json;
use timeline::{AccountId, Span, Subject, TimelineId, TypeSet};
use uuid::Uuid;

use crate::caught_up::{behind, committed, wait_until_as_far, wait_until_done};
use crate::forget::forget_in;
use crate::options::{FilterOptions, PipelineOptions, kafka_of};
use crate::progress::Progress;
use crate::run::{Service, say};

/// How often it is looked how far the replay is.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Timelines that are compared at a time.
const COMPARED_AT_ONCE: usize = 32;
/// How often timelines that differ are compared again, and how long to wait before that: events come in meanwhile.
const COMPARE_TRIES: u32 = 5;
/// How often what the log does not know is copied once everybody was moved.
const COPY_TRIES: u32 = 30;
/// Differences that are printed.
const SHOWN_MAX: usize = 100;

/// Rebuilds all projections from the log into a new keyspace beside the live one, at a bounded rate, compares both, and moves everybody over. It
/// can be stopped and run again at any time: it goes on where it was.
#[derive(Args)]
pub(crate) struct Options {
    /// The keyspace to rebuild in. It is made if it is not there. The one that --keyspace names is filled by --group again.
    #[arg(long)]
    to: String,
    /// Messages of mail.events that are replayed in a second.
    #[arg(long, default_value = "5000")]
    records_per_second: NonZeroU32,
    /// Only rebuilds and compares: nobody is moved over.
    #[arg(long)]
    stay: bool,
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
    let service = Service::start("replay")?;
    let given = options.pipeline.kafka("backstamp-replay")?;
    let live = ScyllaStore::connect(&options.pipeline.scylla.config()).await?;
    if options.to == live.live().keyspace {
        bail!("--to is the keyspace that is live");
    }
    let target = if options.to == options.pipeline.scylla.keyspace {
        Live::at_home(options.to.clone())
    } else {
        let filled_by = (format!("{}-{}", given.group, options.to), format!("{}.", options.to));
        Live { keyspace: options.to.clone(), filled_by: Some(filled_by) }
    };
    let (live_kafka, kafka) = (kafka_of(live.live(), given.clone()), kafka_of(&target, given));
    let config = ScyllaConfig { keyspace: options.to.clone(), ..options.pipeline.scylla.config() };
    apply_schema(&config, options.replication_factor).await?;
    let settings = TopicSettings {
        replication: options.replication_factor.and_then(|copies| i32::try_from(copies).ok()),
        retention_days: options.pipeline.retention.retention_days,
        ..TopicSettings::default()
    };
    event_log::ensure_topics(&kafka, &settings).await?;
    let new = Arc::new(ScyllaStore::connect_beside(&config).await?);
    // Contacts that were forgotten come first of all: before there are rows of theirs. Later, rows are to be taken out.
    if committed(&kafka, Topic::Events).await?.values().all(|offset| *offset == 0) {
        for (account, contact) in live.list_forgotten().await? {
            new.forget(&account, contact, (service.clock)()).await?;
        }
    }
    live.copy_keys_and_letters(&new).await?;

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
        compared = Box::pin(follow_and_compare(&options, &live_kafka, &kafka, &live, &new, &service.clock)) => {
            Some(compared)
        }
    };
    service.shutdown.begin();
    ingesting.await??;
    let Some(compared) = compared else {
        bail!("stopped before it was done: run it again, and it goes on where it was");
    };
    let Compared { timelines, differences, replayed } = compared?;
    let moves = !options.stay && differences.is_empty();
    if moves {
        move_over(&live, &live_kafka, &new, &kafka, &target).await?;
    }
    if options.json {
        say(&json!({
            "keyspace": options.to,
            "group": kafka.group,
            "internal_prefix": kafka.internal_prefix,
            "records": replayed,
            "timelines_compared": timelines,
            "differences": differences,
            "moved": moves,
        })
        .to_string());
    } else {
        differences.iter().for_each(|difference| say(&format!("difference  {difference}")));
        say(&format!("{replayed} messages replayed, {timelines} timelines compared"));
        if moves {
            say(&format!(
                "Moved over: every service goes on in {} within seconds. Back again: backstamp replay --to {}",
                options.to,
                live.live().keyspace
            ));
        }
    }
    match differences.len() {
        0 => Ok(()),
        count => bail!("{count} timelines differ: nothing was moved over"),
    }
}

/// Moves everybody to the keyspace that was rebuilt, once nobody works on it any more.
///
/// What the rebuilding ingest refused is no letter of its own. So the live one has to have come to everything that this one has done:
/// whoever goes on there writes the letters of the rest.
async fn move_over(
    live: &ScyllaStore,
    live_kafka: &KafkaConfig,
    new: &ScyllaStore,
    kafka: &KafkaConfig,
    target: &Live,
) -> anyhow::Result<()> {
    for topic in [Topic::Events, Topic::References] {
        let done = committed(kafka, topic).await?;
        wait_until_as_far(live_kafka, topic, &done).await.context("nothing was moved over")?;
    }
    if !forgotten_meanwhile(live, new).await?.is_empty() {
        bail!("a contact was forgotten just now: run this again, nothing was moved over");
    }
    if live.read_live().await? != *live.live() {
        bail!("somebody else has moved everybody meanwhile: nothing was moved over by this");
    }
    live.copy_keys_and_letters(new).await?;
    // It says so itself, too: whoever is given its name finds the group that fills it.
    new.move_to(target).await?;
    live.move_to(target).await?;
    tracing::info!(to = target.keyspace, "moved over");
    // Of keys that were made in between.
    let mut copied = live.copy_keys_and_letters(new).await;
    for _ in 1..COPY_TRIES {
        if copied.is_ok() {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
        copied = live.copy_keys_and_letters(new).await;
    }
    copied.context(
        "everybody was moved over, but keys that were made or revoked in the last seconds were not copied",
    )?;
    for (account, contact) in forgotten_meanwhile(live, new).await? {
        tracing::error!(account = account.as_str(), %contact, "forgotten while everybody was moved: run forget-contact again");
    }
    Ok(())
}

/// Takes contacts that were forgotten in the live keyspace out of the new one, while its ingest runs.
async fn forget_meanwhile(
    live: &ScyllaStore,
    new: &Arc<ScyllaStore>,
    kafka: &KafkaConfig,
    pipeline: &PipelineOptions,
) -> anyhow::Result<()> {
    for contact in forgotten_meanwhile(live, new).await? {
        forget_in(new.clone(), kafka, pipeline, contact).await?;
    }
    Ok(())
}

/// The contacts that were forgotten in the live keyspace and not in the new one.
async fn forgotten_meanwhile(
    live: &ScyllaStore,
    new: &ScyllaStore,
) -> anyhow::Result<Vec<(AccountId, Uuid)>> {
    let known: BTreeSet<(AccountId, Uuid)> = new.list_forgotten().await?.into_iter().collect();
    Ok(live.list_forgotten().await?.into_iter().filter(|contact| !known.contains(contact)).collect())
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
    new: &Arc<ScyllaStore>,
    clock: &edge::Clock,
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
    forget_meanwhile(live, new, kafka, &options.pipeline).await?;
    let now = clock();
    let now_is_left_out = Span::of_times(
        now.minus_ms(options.pipeline.retention.retention_ms()).plus_ms(MARGIN_MS),
        now.minus_ms(1),
    );
    let comparison = Comparison { live, new, live_kafka, kafka, span: now_is_left_out };
    let mut ids: BTreeSet<TimelineId> = live.list_timelines().await?.into_iter().collect();
    ids.extend(new.list_timelines().await?);
    let timelines = ids.len() as u64;
    let differences = comparison.differences(ids).await?;
    forget_meanwhile(live, new, kafka, &options.pipeline).await?;
    let shown = |(id, what): &(TimelineId, String)| format!("{} {}: {what}", id.account, id.subject);
    Ok(Compared {
        timelines,
        replayed: total,
        differences: differences.iter().take(SHOWN_MAX).map(shown).collect(),
    })
}

/// Rows that expire while both are compared are left out.
const MARGIN_MS: i64 = 3_600_000;

/// What there is of a timeline: how many rows, and the newest and the oldest of them.
type Summary = (u64, Vec<String>);

/// Compares what two keyspaces show while both go on: by what occurred in `span`, which ended when it began.
struct Comparison<'a> {
    live: &'a ScyllaStore,
    new: &'a ScyllaStore,
    live_kafka: &'a KafkaConfig,
    kafka: &'a KafkaConfig,
    span: Span,
}

impl Comparison<'_> {
    /// The timelines that differ, and how, though they were looked at again.
    async fn differences(&self, mut ids: BTreeSet<TimelineId>) -> anyhow::Result<Vec<(TimelineId, String)>> {
        let mut differences = Vec::new();
        for attempt in 1..=COMPARE_TRIES {
            differences = self.compare(&ids).await?;
            if differences.is_empty() {
                return Ok(differences);
            }
            if attempt < COMPARE_TRIES {
                // What came in meanwhile is to be in both.
                for kafka in [self.live_kafka, self.kafka] {
                    wait_until_all_done(kafka).await?;
                }
                ids = differences.iter().map(|(id, _)| id.clone()).collect();
            }
        }
        // Some may never stand still.
        let growing = self.growing(&ids).await?;
        differences.retain(|(id, _)| !growing.contains(id));
        Ok(differences)
    }

    /// What the two say of timelines, where they differ.
    async fn compare(&self, ids: &BTreeSet<TimelineId>) -> anyhow::Result<Vec<(TimelineId, String)>> {
        let compared: Vec<Option<(TimelineId, String)>> = stream::iter(ids.clone())
            .map(|id| async move {
                if !self.are_known_alike(&id).await? {
                    return Ok::<_, anyhow::Error>(Some((id, "is known in the new one alone".to_owned())));
                }
                let (one, other) = (self.summary(self.live, &id).await?, self.summary(self.new, &id).await?);
                Ok((one != other).then(|| (id, format!("live has {one:?}, new has {other:?}"))))
            })
            .buffer_unordered(COMPARED_AT_ONCE)
            .try_collect()
            .await?;
        Ok(compared.into_iter().flatten().collect())
    }

    /// Whether a timeline that is known in the new keyspace is so in the live one. One that is known in the live one alone gets to be known in
    /// both: what it was known by may have left the log, or be of a contact that was forgotten.
    async fn are_known_alike(&self, id: &TimelineId) -> anyhow::Result<bool> {
        // A contact's rows by campaign show nowhere by themselves.
        if matches!(id.subject, Subject::ContactCampaign(..)) {
            return Ok(true);
        }
        let (live, new) = (self.live.is_known(id).await?, self.new.is_known(id).await?);
        if live && !new {
            self.new.mark_known(std::slice::from_ref(id)).await?;
        }
        Ok(live || !new)
    }

    /// The timelines that get rows of this span all the time, as from a sender that catches up, and have as many in the live keyspace
    /// as the new one has before that or later.
    async fn growing(&self, ids: &BTreeSet<TimelineId>) -> anyhow::Result<BTreeSet<TimelineId>> {
        let before = self.totals(self.new, ids).await?;
        wait_until_all_done(self.live_kafka).await?;
        let between = self.totals(self.live, ids).await?;
        wait_until_all_done(self.kafka).await?;
        let after = self.totals(self.new, ids).await?;
        let totals = before.into_iter().zip(between).zip(after);
        let grows = |((before, between), after): ((u64, u64), u64)| {
            before < after && (before..=after).contains(&between)
        };
        Ok(ids.iter().zip(totals).filter(|(_, totals)| grows(*totals)).map(|(id, _)| id.clone()).collect())
    }

    async fn totals(&self, store: &ScyllaStore, ids: &BTreeSet<TimelineId>) -> anyhow::Result<Vec<u64>> {
        stream::iter(ids)
            .map(|id| async move { Ok(self.summary(store, id).await?.0) })
            .buffered(COMPARED_AT_ONCE)
            .try_collect()
            .await
    }

    async fn summary(&self, store: &ScyllaStore, id: &TimelineId) -> anyhow::Result<Summary> {
        let mut request = PageRequest {
            types: TypeSet::CAMPAIGN.or(TypeSet::CONTACT),
            span: self.span.clone(),
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
}

/// Waits until an ingest has done everything that is in the log now.
async fn wait_until_all_done(kafka: &KafkaConfig) -> anyhow::Result<()> {
    for topic in [Topic::Events, Topic::CampaignEvents] {
        wait_until_done(kafka, topic).await.context("both must keep up to be compared")?;
    }
    Ok(())
}
