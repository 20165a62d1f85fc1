//! Random histories through Kafka and the CQL store: what `query` answers is what the model says.

use backstamp_tests::Seed;
use backstamp_tests::check::Effort;
use backstamp_tests::client::Client;
use backstamp_tests::deployment::{Deployment, EVENTS};
use backstamp_tests::history::{Knobs, Record};
use backstamp_tests::ledger::Books;
use backstamp_tests::program::Running;
use backstamp_tests::trial::Trial;
use rand::RngExt;
use rand::rngs::StdRng;

const LARGE_HISTORY_EVENTS: usize = 20_000;
const PARTITIONS_AFTER_GROWTH: usize = 17;

/// Keys of all kinds and none, partitions added in the middle, and in the end everything once more under other keys.
#[tokio::test]
async fn large_history_is_answered_as_the_model_says_and_repeats_change_nothing() {
    let seed = Seed::from_environment();
    let mut rng = seed.rng(3000);
    let deployment = Deployment::new().await;
    let knobs = Knobs::sized(LARGE_HISTORY_EVENTS).with_giant(0.6);
    let trial = Trial::prepare(rng.random(), &knobs, &deployment.environment()).await;
    let records = &trial.history.records;
    let (first, second) = records.split_at(records.len() / 2);

    // The first half is there before anybody reads it, so it comes in large batches; the second half comes as it is published.
    deployment.publish(first, &mut rng).await;
    let _ingests = [deployment.ingest().await, deployment.ingest().await];
    let (_query, client) = deployment.query().await;
    deployment.topics.grow(EVENTS, PARTITIONS_AFTER_GROWTH).await;
    deployment.publish(second, &mut rng).await;
    balance(&deployment, &trial, records, &client, &mut rng, 10).await;

    deployment.publish(records, &mut rng).await;
    balance(&deployment, &trial, &[records.as_slice(), records].concat(), &client, &mut rng, 4).await;
    deployment.remove().await;
}

const KILLED_HISTORY_EVENTS: usize = 8000;

/// What is done to one of the ingests while all of them work.
#[derive(Clone, Copy)]
enum Disturbance {
    /// It is killed, and another one starts in its place.
    Kill,
    /// A third one joins.
    Join,
    /// The third one leaves in order.
    Leave,
    /// The first one is held where it is, until the others have done its work too.
    Stop,
}

use Disturbance::{Join, Kill, Leave, Stop};

/// Ingests are killed while they work, another one joins and leaves, and one is held for long and comes back as a zombie.
#[tokio::test]
async fn killed_joining_leaving_and_late_ingests_lose_nothing_and_double_nothing() {
    let seed = Seed::from_environment();
    let (mut rng, mut sender_rng) = (seed.rng(4000), seed.rng(4001));
    let deployment = Deployment::new().await;
    let knobs = Knobs::sized(KILLED_HISTORY_EVENTS).with_giant(0.6);
    let trial = Trial::prepare(rng.random(), &knobs, &deployment.environment()).await;
    let records = &trial.history.records;
    let mut ingests = vec![deployment.ingest().await, deployment.ingest().await];
    let (_query, client) = deployment.query().await;

    let disturbances = [Kill, Join, Kill, Leave, Kill, Kill, Stop];
    tokio::join!(
        deployment.publish(records, &mut sender_rng),
        disturb(&deployment, &mut ingests, records.len(), &disturbances, &mut rng),
    );
    deployment.wait_until_done().await;
    // It wakes up with a batch in its hands that others have done.
    ingests[0].cont();
    balance(&deployment, &trial, records, &client, &mut rng, 10).await;

    tokio::join!(
        deployment.publish(records, &mut sender_rng),
        disturb(&deployment, &mut ingests, records.len(), &[Kill, Kill], &mut rng),
    );
    balance(&deployment, &trial, &[records.as_slice(), records].concat(), &client, &mut rng, 4).await;
    deployment.remove().await;
}

async fn balance(
    deployment: &Deployment,
    trial: &Trial,
    acknowledged: &[Record],
    client: &Client,
    rng: &mut StdRng,
    filters: usize,
) {
    let books = Books { deployment, keys: &trial.keys, acknowledged, gone: &[], client };
    books.balance(rng, &Effort { filters, ..Effort::thorough() }).await;
}

/// Does all of `disturbances`, each when a random part of `count` more records has been published.
async fn disturb(
    deployment: &Deployment,
    ingests: &mut Vec<Running>,
    count: usize,
    disturbances: &[Disturbance],
    rng: &mut StdRng,
) {
    let before = deployment.published().await;
    let mut moments: Vec<usize> = disturbances.iter().map(|_| rng.random_range(0..count * 3 / 4)).collect();
    moments.sort_unstable();
    for (disturbance, moment) in disturbances.iter().zip(moments) {
        deployment.wait_until_published(before + moment).await;
        match disturbance {
            Kill => {
                let killed = rng.random_range(0..ingests.len());
                ingests[killed].kill9();
                ingests[killed] = deployment.ingest().await;
            }
            Join => ingests.push(deployment.ingest().await),
            Leave => assert!(ingests.pop().unwrap().sigterm_and_wait().await.success()),
            Stop => ingests[0].stop(),
        }
    }
}
