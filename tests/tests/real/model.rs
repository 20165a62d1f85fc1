//! Random histories through Kafka and the CQL store: what `query` answers is what the model says.

use backstamp_tests::Seed;
use backstamp_tests::check::Effort;
use backstamp_tests::history::Knobs;
use backstamp_tests::trial::{Trial, cut};
use rand::RngExt;

use super::deployment::{Deployment, EVENTS, Flawed};

const LARGE_HISTORY_EVENTS: usize = 20_000;
const PARTITIONS_AFTER_GROWTH: usize = 17;

/// Keys of all kinds and none, partitions added in the middle, and in the end everything once more under other keys.
#[tokio::test]
async fn large_history_is_answered_as_the_model_says_and_repeats_change_nothing() {
    let seed = Seed::from_environment();
    let mut rng = seed.rng(3000);
    let deployment = Deployment::new().await;
    let knobs = Knobs::sized(LARGE_HISTORY_EVENTS).with_giant(0.6);
    let trial = Trial::prepare(rng.random(), &knobs, &deployment.environment().await).await;
    let _ingests = [deployment.ingest().await, deployment.ingest().await];
    let (_query, client) = deployment.query().await;

    let records = &trial.history.records;
    let (first, second) = records.split_at(records.len() / 2);
    let mut flawed = deployment.publish(first, &mut rng).await;
    deployment.topics.grow(EVENTS, PARTITIONS_AFTER_GROWTH).await;
    flawed.extend(deployment.publish(second, &mut rng).await);
    deployment.wait_until_done().await;
    deployment.check_dead_letters(&flawed).await;
    trial.judge(&client, &mut rng, &Effort::thorough()).await;

    flawed.extend(deployment.publish(records, &mut rng).await);
    deployment.wait_until_done().await;
    deployment.check_dead_letters(&flawed).await;
    trial.judge(&client, &mut rng, &Effort { filters: 8, ..Effort::thorough() }).await;
    deployment.remove().await;
}

const KILLED_HISTORY_EVENTS: usize = 8000;
const KILLS: usize = 4;

/// Ingests are killed while they work, another one joins and leaves, and one is held for long and comes back as a zombie.
#[tokio::test]
async fn killed_joining_leaving_and_late_ingests_lose_nothing_and_double_nothing() {
    let seed = Seed::from_environment();
    let mut rng = seed.rng(4000);
    let deployment = Deployment::new().await;
    let knobs = Knobs::sized(KILLED_HISTORY_EVENTS).with_giant(0.6);
    let trial = Trial::prepare(rng.random(), &knobs, &deployment.environment().await).await;
    let mut ingests = vec![deployment.ingest().await, deployment.ingest().await];
    let (_query, client) = deployment.query().await;

    let batches = cut(&trial.history.records, &mut rng, 400);
    let mut flawed = Flawed::new();
    let mut disturbances: Vec<usize> =
        (0..KILLS + 2).map(|_| rng.random_range(1..batches.len())).collect();
    disturbances.sort_unstable();
    for (number, batch) in batches.iter().enumerate() {
        flawed.extend(deployment.publish(batch, &mut rng).await);
        for disturbance in disturbances.iter().enumerate().filter(|(_, at)| **at == number).map(|(n, _)| n) {
            match disturbance {
                // The third joins, works along and leaves in order.
                1 => ingests.push(deployment.ingest().await),
                3 => assert!(ingests.remove(2).sigterm_and_wait().await.success()),
                _ => {
                    let killed = rng.random_range(0..ingests.len());
                    ingests[killed].kill9();
                    ingests[killed] = deployment.ingest().await;
                }
            }
        }
    }
    // The others take its partitions over and go on to the end; then it wakes up, with a batch in its hands.
    ingests[0].stop();
    deployment.wait_until_done().await;
    ingests[0].cont();
    deployment.check_dead_letters(&flawed).await;
    trial.judge(&client, &mut rng, &Effort::thorough()).await;

    flawed.extend(deployment.publish(&trial.history.records, &mut rng).await);
    ingests[1].kill9();
    deployment.wait_until_done().await;
    deployment.check_dead_letters(&flawed).await;
    trial.judge(&client, &mut rng, &Effort { filters: 8, ..Effort::thorough() }).await;
    deployment.remove().await;
}
