//! The log's retention has removed records that were not read: each is counted, and told in the log; none is skipped in
//! silence.

use std::collections::BTreeMap;

use backstamp_tests::deployment::EVENTS;
use backstamp_tests::history::Topic;

use super::scene::{Scene, ops, sized};

const LOST: &str = "backstamp_offsets_lost_total";

#[tokio::test]
async fn records_that_retention_removed_before_they_were_read_are_counted_and_told() {
    let mut scene = Scene::new(5900, sized(2000, 20_000)).await;
    let records = scene.records().to_vec();
    let thirds: Vec<_> = records.chunks(records.len().div_ceil(3)).collect();
    let Scene { deployment, sender_rng, .. } = &mut scene;
    let ingest = deployment.ingest().await;
    deployment.publish(thirds[0], sender_rng).await;
    deployment.wait_until_done().await;
    assert!(ingest.sigterm_and_wait().await.success());
    let gone: Vec<_> =
        deployment.log().await.into_iter().filter(|(topic, _)| *topic == Topic::Events).collect();

    // Nobody reads, and half of what comes is removed.
    let done = deployment.topics.ends(EVENTS).await;
    deployment.publish(thirds[1], sender_rng).await;
    let ends = deployment.topics.ends(EVENTS).await;
    let removed: BTreeMap<i32, i64> = ends
        .iter()
        .map(|(partition, end)| (*partition, done[partition] + (end - done[partition]) / 2))
        .collect();
    let lost: i64 = removed.iter().map(|(partition, until)| until - done[partition]).sum();
    assert!(lost > 0);
    deployment.topics.remove_before(EVENTS, &removed).await;

    let ingest = deployment.ingest().await;
    let reading = deployment.wait_for_progress();
    deployment.under_load(thirds[2], sender_rng, reading).await;
    deployment.wait_until_done().await;
    let counted = ops(&ingest).metric(LOST, &format!("topic=\"{EVENTS}\"")).await.unwrap();
    #[expect(clippy::cast_precision_loss, reason = "thousands at most")]
    let expected = lost as f64;
    assert!((counted - expected).abs() < 0.5, "{counted} are counted, {lost} were removed");
    let told = ingest.stderr().matches("removed records before they were read").count();
    let partitions = removed.iter().filter(|(partition, until)| **until > done[partition]).count();
    assert_eq!(told, partitions, "{}", ingest.stderr());

    let kept = thirds[2].iter().filter(|record| record.topic == Topic::Events).cloned().collect::<Vec<_>>();
    scene.balance(&kept, &gone, &format!("{lost} records removed before they were read")).await;
    scene.clear_up().await;
}
