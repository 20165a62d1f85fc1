//! Thousands of small cases, and a history that is large enough for trees.

use backstamp_tests::Seed;
use backstamp_tests::check::{Effort, Report};
use backstamp_tests::history::Knobs;
use backstamp_tests::trial::Trial;
use futures::stream::{self, StreamExt};
use rand::RngExt;
use rand::rngs::StdRng;

use super::dev::Dev;

const SMALL_HISTORIES: u64 = 120;
const CONCURRENT_HISTORIES: usize = 4;
const LARGE_HISTORY_EVENTS: usize = 20_000;

/// Each in accounts of its own, four at a time, on one server.
#[tokio::test]
async fn small_histories_are_answered_as_the_model_says() {
    let seed = Seed::from_environment();
    let dev = Dev::start().await;
    let trials = stream::iter(0..SMALL_HISTORIES).map(|number| small_history(&dev, &seed, number));
    let reports: Vec<Report> = trials.buffer_unordered(CONCURRENT_HISTORIES).collect().await;
    let queries: usize = reports.iter().map(|report| report.queries).sum();
    assert!(queries > 10_000, "only {queries} queries were compared");
}

async fn small_history(dev: &Dev, seed: &Seed, number: u64) -> Report {
    let mut rng = seed.rng(number);
    let knobs = small_knobs(&mut rng).in_accounts(&format!("h{number}"));
    let trial = Trial::prepare(rng.random(), &knobs, &dev.environment()).await;
    let batch_max = rng.random_range(1..=300);
    trial.post(dev.client(), &mut rng, batch_max).await;
    let effort = Effort { filters: 6, ..Effort::thorough() };
    trial.judge(dev.client(), &mut rng, &effort).await
}

/// Anything from a handful of events to some hundreds, crowded or not, full of repeats or of flaws or of neither.
fn small_knobs(rng: &mut StdRng) -> Knobs {
    let events_max = [10, 60, 300][rng.random_range(0..3)];
    Knobs {
        accounts: rng.random_range(1..=3),
        campaigns: rng.random_range(1..=4),
        contacts: rng.random_range(1..=8),
        events: rng.random_range(1..=events_max),
        giant: [0.0, 0.0, 0.9][rng.random_range(0..3)],
        repeated: rng.random_range(0.0..0.6),
        flawed: rng.random_range(0.0..0.3),
        expired: rng.random_range(0.0..0.3),
        tied: rng.random_range(0.0..1.0),
        ..Knobs::default()
    }
}

/// One campaign has most of it, so that its tree splits leaves and nodes.
#[tokio::test]
async fn large_history_is_answered_as_the_model_says() {
    let seed = Seed::from_environment();
    let mut rng = seed.rng(1000);
    let dev = Dev::start().await;
    let knobs = Knobs::sized(LARGE_HISTORY_EVENTS).with_giant(0.7);
    let trial = Trial::prepare(rng.random(), &knobs, &dev.environment()).await;
    trial.post(dev.client(), &mut rng, 1000).await;
    trial.judge(dev.client(), &mut rng, &Effort::thorough()).await;
}
