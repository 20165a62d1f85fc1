//! Thousands of small cases, and a history that is large enough for trees.

use backstamp_tests::Seed;
use backstamp_tests::check::{Effort, Report};
use backstamp_tests::history::{History, Knobs, Record};
use backstamp_tests::trial::Trial;
use chrono::Utc;
use futures::stream::{self, StreamExt};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

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
    let rows: usize = reports.iter().map(|report| report.rows).sum();
    assert!(queries > 5_000 && rows > 20_000, "only {queries} queries with {rows} rows were compared");
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

/// All of them are appended in one millisecond, or nearly so: the order is the log's, whatever the clock says.
#[tokio::test]
async fn last_of_many_names_in_one_body_is_shown() {
    const NAMES: usize = 5000;
    let dev = Dev::start().await;
    let names = (0..NAMES).map(|n| {
        Record::reference(
            &json!({ "kind": "campaign", "account_id": "names", "id": "cmp", "name": format!("name {n}") }),
        )
    });
    let event = Record::event(&json!({
        "account_id": "names", "id": "evt", "type": "open", "campaign_id": "cmp",
        "contact_id": "7b1f9c2e-3a4d-4b8e-9c1d-2e3f4a5b6c7d", "occurred_at": Utc::now().to_rfc3339(),
    }));
    let history = History { accounts: vec!["names".to_owned()], records: names.chain([event]).collect() };
    let trial = Trial::of(history, &dev.environment()).await;
    trial.post_batch(dev.client(), &trial.history.records, true).await.expect("all is taken in");
    trial.judge(dev.client(), &mut StdRng::seed_from_u64(0), &Effort::quick()).await;
}
