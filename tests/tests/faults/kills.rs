//! Ingests are killed while they work, again and again.

use std::time::Duration;

use rand::RngExt;

use super::scene::{Scene, any_moment, sized};

/// How far into its work a kill may fall.
const KILL_DELAY_MAX: Duration = Duration::from_millis(400);

#[tokio::test]
async fn ingests_that_are_killed_lose_nothing_and_double_nothing() {
    let kills = sized(5, 50);
    let mut scene = Scene::new(5000, sized(3000, 40_000)).await;
    let Scene { deployment, trial, rng, sender_rng, .. } = &mut scene;
    let mut ingests = [deployment.ingest().await, deployment.ingest().await];
    let killing = async {
        for _ in 0..kills {
            deployment.wait_for_progress().await;
            any_moment(KILL_DELAY_MAX, rng).await;
            let killed = rng.random_range(0..ingests.len());
            ingests[killed].kill9();
            ingests[killed] = deployment.ingest().await;
        }
    };
    deployment.under_load(&trial.history.records, sender_rng, killing).await;
    scene.finish(&format!("{kills} kills of ingest")).await;
}
