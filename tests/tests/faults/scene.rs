//! What all of them start from: a deployment of its own, a history to publish, a `query` that must live through it all.

use std::time::Duration;

use backstamp_tests::Seed;
use backstamp_tests::check::Effort;
use backstamp_tests::client::Client;
use backstamp_tests::deployment::{Addresses, CLASSIC, Deployment, Logged};
use backstamp_tests::history::{History, Knobs, Record};
use backstamp_tests::ledger::{Books, Ledger};
use backstamp_tests::program::Running;
use backstamp_tests::trial::Trial;
use rand::RngExt;
use rand::rngs::StdRng;

/// Whether they are to be run whole.
pub(super) fn is_whole() -> bool {
    std::env::var("BACKSTAMP_FAULTS").is_ok_and(|value| value == "all")
}

/// One size for `cargo test`, another for the whole.
pub(super) fn sized<T>(quick: T, whole: T) -> T {
    if is_whole() { whole } else { quick }
}

/// A moment within `max`.
pub(super) async fn any_moment(max: Duration, rng: &mut StdRng) {
    tokio::time::sleep(max.mul_f64(rng.random())).await;
}

/// A deployment, and what is published to it.
pub(super) struct Scene {
    pub(super) deployment: Deployment,
    pub(super) trial: Trial,
    pub(super) client: Client,
    /// Decides what fails, and when.
    pub(super) rng: StdRng,
    /// Decides how it is published.
    pub(super) sender_rng: StdRng,
    query: Running,
    seed: Seed,
}

impl Scene {
    /// On the servers that all tests share. `part` tells the choices of one test from another's.
    pub(super) async fn new(part: u64, events: usize) -> Scene {
        Self::at(Addresses::shared().await, CLASSIC, part, events).await
    }

    pub(super) async fn at(addresses: Addresses, kafka_options: &str, part: u64, events: usize) -> Scene {
        let seed = Seed::from_environment();
        let (mut rng, sender_rng) = (seed.rng(part), seed.rng(part + 1));
        let deployment = Deployment::at(addresses, kafka_options).await;
        let knobs = Knobs::sized(events).with_giant(0.4);
        let trial = Trial::prepare(rng.random(), &knobs, &deployment.environment()).await;
        let (query, client) = deployment.query().await;
        Scene { deployment, trial, client, rng, sender_rng, query, seed }
    }

    /// All records.
    pub(super) fn records(&self) -> &[Record] {
        &self.trial.history.records
    }

    /// Another history for the same deployment, in accounts of its own.
    pub(super) async fn another_history(&mut self, events: usize) -> Trial {
        let knobs = Knobs::sized(events).in_accounts("other");
        let history = History::generate(self.rng.random(), &knobs, chrono::Utc::now());
        Trial::of(history, &self.deployment.environment()).await
    }

    /// Balances the ledger, and shows it.
    pub(super) async fn balance(&mut self, acknowledged: &[Record], gone: &[Logged], what: &str) -> Ledger {
        assert!(!self.query.has_ended(), "query has ended: {}", self.query.stderr());
        let Scene { deployment, trial, client, rng, .. } = self;
        let books = Books { deployment, keys: &trial.keys, acknowledged, gone, client };
        let ledger = books.balance(rng, &Effort { filters: sized(3, 8), ..Effort::thorough() }).await;
        eprintln!("--- {what}: {ledger}");
        ledger
    }

    /// Balances the ledger of all records, and clears up.
    pub(super) async fn finish(mut self, what: &str) {
        let records = self.records().to_vec();
        self.balance(&records, &[], what).await;
        self.clear_up().await;
    }

    pub(super) async fn clear_up(self) {
        self.deployment.remove().await;
        // Shown where anything before this failed.
        drop(self.seed);
    }
}

/// A client of a service's ops address.
pub(super) fn ops(running: &Running) -> Client {
    Client::new(running.ops_url()).unwrap()
}
