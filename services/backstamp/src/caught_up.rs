//! Waiting until `ingest` is done with what was published before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::bail;
use event_log::{KafkaConfig, Topic};

/// How long it may take.
const BEHIND_MAX: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(200);

/// How many messages of `topic` `ingest`, whose group is `kafka.group`, has to do.
pub(crate) async fn behind(kafka: &KafkaConfig, topic: Topic) -> anyhow::Result<i64> {
    let ends = ends(kafka, topic).await?;
    left(&group_of(kafka, topic), topic, &ends).await
}

/// Waits until `ingest`, whose group is `kafka.group`, has committed all that is in `topic` now.
pub(crate) async fn wait_until_done(kafka: &KafkaConfig, topic: Topic) -> anyhow::Result<()> {
    wait_until_as_far(kafka, topic, &ends(kafka, topic).await?).await
}

/// Waits until `ingest`, whose group is `kafka.group`, has committed the offsets of `topic` in `until`, by partition.
pub(crate) async fn wait_until_as_far(
    kafka: &KafkaConfig,
    topic: Topic,
    until: &BTreeMap<i32, i64>,
) -> anyhow::Result<()> {
    let kafka = group_of(kafka, topic);
    let begun = Instant::now();
    loop {
        let left = left(&kafka, topic, until).await?;
        if left == 0 {
            return Ok(());
        }
        if begun.elapsed() > BEHIND_MAX {
            bail!(
                "group {} has {left} messages of {} to do: is ingest running, and is this its --group?",
                kafka.group,
                topic.name()
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What `ingest`, whose group is `kafka.group`, has committed of `topic`, by partition.
pub(crate) async fn committed(kafka: &KafkaConfig, topic: Topic) -> anyhow::Result<BTreeMap<i32, i64>> {
    Ok(event_log::committed(&group_of(kafka, topic), topic).await?)
}

async fn ends(kafka: &KafkaConfig, topic: Topic) -> anyhow::Result<BTreeMap<i32, i64>> {
    let bounds = event_log::bounds(kafka, topic).await?;
    Ok(bounds.into_iter().map(|(partition, (_, end))| (partition, end)).collect())
}

fn group_of(kafka: &KafkaConfig, topic: Topic) -> KafkaConfig {
    let suffix = match topic {
        Topic::CampaignEvents => ".own",
        Topic::References => ".references",
        Topic::Events | Topic::DeadLetters => "",
    };
    KafkaConfig { group: format!("{}{suffix}", kafka.group), ..kafka.clone() }
}

/// How many messages before `until` a group has to do: what retention has removed, it has not.
async fn left(kafka: &KafkaConfig, topic: Topic, until: &BTreeMap<i32, i64>) -> anyhow::Result<i64> {
    let (bounds, committed) =
        tokio::try_join!(event_log::bounds(kafka, topic), event_log::committed(kafka, topic))?;
    let behind = |(partition, until): (&i32, &i64)| {
        let start = bounds.get(partition).map_or(0, |(start, _)| *start);
        let committed = committed.get(partition).copied().unwrap_or(0);
        (until - committed.max(start)).max(0)
    };
    Ok(until.iter().map(behind).sum())
}
