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
    let kafka = group_of(kafka, topic);
    let bounds = event_log::bounds(&kafka, topic).await?;
    left(&kafka, topic, &bounds).await
}

/// Waits until `ingest`, whose group is `kafka.group`, has committed all that is in `topic` now.
pub(crate) async fn wait_until_done(kafka: &KafkaConfig, topic: Topic) -> anyhow::Result<()> {
    let kafka = group_of(kafka, topic);
    let bounds = event_log::bounds(&kafka, topic).await?;
    let begun = Instant::now();
    loop {
        let left = left(&kafka, topic, &bounds).await?;
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

fn group_of(kafka: &KafkaConfig, topic: Topic) -> KafkaConfig {
    let suffix = match topic {
        Topic::CampaignEvents => ".own",
        Topic::References => ".references",
        Topic::Events | Topic::DeadLetters => "",
    };
    KafkaConfig { group: format!("{}{suffix}", kafka.group), ..kafka.clone() }
}

/// What retention has removed is not waited for.
async fn left(kafka: &KafkaConfig, topic: Topic, bounds: &BTreeMap<i32, (i64, i64)>) -> anyhow::Result<i64> {
    let committed = event_log::committed(kafka, topic).await?;
    let behind = |(partition, (start, end)): (&i32, &(i64, i64))| {
        let committed = committed.get(partition).copied().unwrap_or(0);
        (end - committed.max(*start)).max(0)
    };
    Ok(bounds.iter().map(behind).sum())
}
