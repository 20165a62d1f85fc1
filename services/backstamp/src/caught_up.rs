//! Waiting until `ingest` is done with what was published before.

use std::time::{Duration, Instant};

use anyhow::bail;
use event_log::{KafkaConfig, Topic};

/// How long it may take.
const BEHIND_MAX: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(200);

/// Waits until `ingest`, whose group is `kafka.group`, has committed all that is in `topic` now.
pub(crate) async fn wait_until_done(kafka: &KafkaConfig, topic: Topic) -> anyhow::Result<()> {
    let suffix = match topic {
        Topic::CampaignEvents => ".own",
        Topic::References => ".references",
        Topic::Events | Topic::DeadLetters => "",
    };
    let kafka = KafkaConfig { group: format!("{}{suffix}", kafka.group), ..kafka.clone() };
    let ends = event_log::ends(&kafka, topic).await?;
    let begun = Instant::now();
    loop {
        let committed = event_log::committed(&kafka, topic).await?;
        let behind =
            |(partition, end): (&i32, &i64)| (end - committed.get(partition).copied().unwrap_or(0)).max(0);
        let left: i64 = ends.iter().map(behind).sum();
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
