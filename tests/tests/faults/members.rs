//! Members join and leave in a storm: in order, killed, and before they have worked at all.

use std::time::Duration;

use backstamp_tests::deployment::{Addresses, CLASSIC, KIP_848};
use rand::RngExt;

use super::scene::{Scene, any_moment, sized};

const PAUSE_MAX: Duration = Duration::from_millis(700);
const MEMBERS_MAX: usize = 5;

#[tokio::test]
async fn members_that_come_and_go_in_a_storm_lose_nothing() {
    storm(5200, CLASSIC).await;
}

#[tokio::test]
async fn the_same_holds_where_all_partitions_are_revoked_at_once() {
    storm(5210, &format!("{CLASSIC},partition.assignment.strategy=range")).await;
}

#[tokio::test]
async fn the_same_holds_in_the_new_group_protocol() {
    storm(5220, KIP_848).await;
}

async fn storm(part: u64, options: &str) {
    let changes = sized(6, 40);
    let mut scene = Scene::at(Addresses::shared().await, options, part, sized(2000, 20_000)).await;
    let Scene { deployment, trial, rng, sender_rng, .. } = &mut scene;
    let mut members = vec![deployment.ingest().await];
    let storming = async {
        for _ in 0..changes {
            any_moment(PAUSE_MAX, rng).await;
            let leaves = members.len() == MEMBERS_MAX || (members.len() > 1 && rng.random_bool(0.5));
            if !leaves {
                members.push(deployment.ingest().await);
                continue;
            }
            let member = members.swap_remove(rng.random_range(0..members.len()));
            if rng.random() {
                member.kill9();
            } else {
                let status = member.sigterm_and_wait().await;
                assert!(status.success(), "{status}: {}", member.stderr());
            }
        }
    };
    deployment.under_load(&trial.history.records, sender_rng, storming).await;
    scene.finish(&format!("{changes} changes of members ({options})")).await;
}
