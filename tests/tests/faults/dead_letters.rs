//! The dead-letter topic cannot be written: the offset of what belongs there waits, and a metric says so.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::ensure;
use backstamp_tests::client::Client;
use backstamp_tests::deployment::{DEAD, Deployment, EVENTS};
use backstamp_tests::history::Record;
use backstamp_tests::{eventually, unique_name};

use super::scene::{Scene, ops, sized};

const PATIENCE: Duration = Duration::from_secs(120);
const BLOCKED: &str = "backstamp_blocked_steps";
const STEP: &str = "step=\"publish_dead_letters\"";
/// As small as Kafka lets it be in effect.
const BYTES_TINY: usize = 1;
const BYTES_ENOUGH: usize = 2 << 20;

#[tokio::test]
async fn dead_letters_that_cannot_be_written_hold_their_offsets_and_a_metric_says_so() {
    let mut scene = Scene::new(5800, sized(2000, 20_000)).await;
    let ingest = scene.deployment.ingest().await;
    let ops = ops(&ingest);
    let records = scene.records().to_vec();
    let thirds: Vec<&[Record]> = records.chunks(records.len().div_ceil(3)).collect();
    let Scene { deployment, sender_rng, .. } = &mut scene;
    deployment.publish(thirds[0], sender_rng).await;
    deployment.wait_until_done().await;
    assert_eq!(ops.metric(BLOCKED, STEP).await.unwrap(), 0.0);

    let flawed: BTreeSet<Vec<u8>> = records
        .iter()
        .filter(|record| record.flaw.is_some())
        .filter_map(|record| record.value.clone())
        .collect();
    deployment.topics.set_message_bytes_max(DEAD, BYTES_TINY).await;
    let done = deployment.topics.committed(&deployment.group, EVENTS).await;
    deployment.under_load(thirds[1], sender_rng, waits(deployment, &ops, &done, &flawed)).await;
    deployment.topics.set_message_bytes_max(DEAD, BYTES_ENOUGH).await;
    goes_on(deployment, &ops).await;

    // Nor where it is missing.
    deployment.topics.delete(&[DEAD]).await;
    let done = deployment.topics.committed(&deployment.group, EVENTS).await;
    deployment.under_load(thirds[2], sender_rng, waits(deployment, &ops, &done, &flawed)).await;
    deployment.apply_schema().await;
    goes_on(deployment, &ops).await;

    // The letters before that are gone with their topic: all records are read once more, so that all letters can be looked over.
    assert!(ingest.sigterm_and_wait().await.success());
    deployment.group = unique_name("again");
    let _ingest = deployment.ingest().await;
    scene.finish("dead letters that could not be written, for their size and for want of a topic").await;
}

/// Returns once the metric says that dead letters wait. What was committed was `done`: since then, no flawed record was.
async fn waits(deployment: &Deployment, ops: &Client, done: &BTreeMap<i32, i64>, flawed: &BTreeSet<Vec<u8>>) {
    eventually(PATIENCE, async || {
        ensure!(ops.metric(BLOCKED, STEP).await? > 0.0, "nothing says that dead letters wait");
        Ok(())
    })
    .await;
    let committed = deployment.topics.committed(&deployment.group, EVENTS).await;
    let mut waiting = 0;
    for record in deployment.topics.consume_all(EVENTS).await {
        let is_new = record.offset >= *done.get(&record.partition).unwrap_or(&0);
        if is_new && record.payload.as_ref().is_some_and(|payload| flawed.contains(payload)) {
            let committed = *committed.get(&record.partition).unwrap_or(&0);
            assert!(committed <= record.offset, "committed up to {committed}, beyond a letter: {record:?}");
            waiting += 1;
        }
    }
    assert!(waiting > 0, "the metric says that letters wait, and there is none");
}

async fn goes_on(deployment: &Deployment, ops: &Client) {
    deployment.wait_until_done().await;
    eventually(PATIENCE, async || {
        ensure!(ops.metric(BLOCKED, STEP).await? == 0.0, "it still says that dead letters wait");
        Ok(())
    })
    .await;
}
