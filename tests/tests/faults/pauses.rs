//! Ingests are held where they are for longer than their group waits for them, and come back with work in their hands that
//! others have done.

use std::time::Duration;

use backstamp_tests::deployment::{Addresses, CLASSIC, KIP_848};

use super::scene::{Scene, any_moment, sized};

const STOP_DELAY_MAX: Duration = Duration::from_millis(300);

#[tokio::test]
async fn ingests_that_are_held_past_their_poll_interval_change_nothing_when_they_come_back() {
    pauses(5100, CLASSIC).await;
}

#[tokio::test]
async fn the_same_holds_in_the_new_group_protocol() {
    pauses(5110, KIP_848).await;
}

async fn pauses(part: u64, options: &str) {
    let (pauses, poll_interval_ms) = (sized(1, 4), sized(4000, 10_000));
    let options = format!("{options},max.poll.interval.ms={poll_interval_ms}");
    let mut scene = Scene::at(Addresses::shared().await, &options, part, sized(2000, 20_000)).await;
    let Scene { deployment, trial, rng, sender_rng, .. } = &mut scene;
    let ingests = [deployment.ingest().await, deployment.ingest().await];
    let pausing = async {
        for pause in 0..pauses {
            deployment.wait_for_progress().await;
            any_moment(STOP_DELAY_MAX, rng).await;
            let held = &ingests[pause % ingests.len()];
            held.stop();
            tokio::time::sleep(Duration::from_millis(poll_interval_ms + 1000)).await;
            deployment.wait_for_progress().await;
            held.cont();
        }
    };
    deployment.under_load(&trial.history.records, sender_rng, pausing).await;
    scene.finish(&format!("{pauses} pauses of {} s ({options})", poll_interval_ms / 1000 + 1)).await;
}
