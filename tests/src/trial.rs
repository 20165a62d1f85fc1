//! A history that is put on a server, and the judge of what the server makes of it.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::check::{Effort, Report, Settled, check_all, wait_until_settled};
use crate::client::{Client, Form, Posted};
use crate::history::{History, Knobs, Record};
use crate::model::{Model, Taken};
use crate::program::Program;

/// What a key of a trial may do.
const PERMISSIONS: [&str; 4] = ["campaigns:read", "contacts:read", "events:write", "references:write"];
/// How long a server may take to show what it was given. Far more than it needs: only what never comes runs into it.
const PATIENCE: Duration = Duration::from_secs(180);
const RETENTION_DAYS: u32 = 180;

/// A history, a key for each of its accounts, and what must be answered once all of it was taken in.
pub struct Trial {
    /// What is published.
    pub history: History,
    /// The API key of each account, with all permissions.
    pub keys: BTreeMap<String, String>,
    model: Model,
}

impl Trial {
    /// Generates a history and makes the keys for it; `environment` says where, as for [`Program::create_key`].
    ///
    /// # Panics
    ///
    /// When a key cannot be made, or the model refuses what is well, or takes what is flawed.
    pub async fn prepare(seed: u64, knobs: &Knobs, environment: &[(&str, &str)]) -> Self {
        Self::of(History::generate(seed, knobs, Utc::now()), environment).await
    }

    /// The same for a history that is there already.
    ///
    /// # Panics
    ///
    /// As [`prepare`](Self::prepare) does.
    pub async fn of(history: History, environment: &[(&str, &str)]) -> Self {
        let mut keys = BTreeMap::new();
        for account in &history.accounts {
            keys.insert(account.clone(), Program::create_key(account, &PERMISSIONS, environment).await);
        }
        let model = foresee(&history, Utc::now());
        Self { history, keys, model }
    }

    /// Posts all of the history in its order, in batches of all sizes up to `batch_max` and in all forms.
    ///
    /// # Panics
    ///
    /// When the intake does not answer, or does not accept exactly what is well.
    pub async fn post(&self, client: &Client, rng: &mut StdRng, batch_max: usize) {
        for batch in cut(&self.history.records, rng, batch_max) {
            let posted = self.post_batch(client, batch, rng.random()).await;
            posted.unwrap_or_else(|error| panic!("a batch is not taken in: {error:#}"));
        }
    }

    /// Posts some records: as arrays or as NDJSON, or a single one by itself.
    ///
    /// # Errors
    ///
    /// When there is no answer, or one that tells of a failure.
    ///
    /// # Panics
    ///
    /// When the intake accepts what is flawed or rejects what is well.
    pub async fn post_batch(
        &self,
        client: &Client,
        batch: &[Record],
        by_line: bool,
    ) -> anyhow::Result<Posted> {
        let form = match batch {
            [_] if by_line => Form::Object,
            _ if by_line => Form::Ndjson,
            _ => Form::Array,
        };
        let posted = client.post_records(&self.keys, batch, batch.len(), form).await?;
        let postable = batch.iter().filter(|record| record.is_postable);
        let accepted = postable.clone().filter(|record| record.flaw.is_none()).count();
        let expected = Posted { accepted, rejected: postable.count() - accepted };
        assert_eq!(posted, expected, "the intake's verdict on {:?}", flaws(batch));
        Ok(posted)
    }

    /// Waits until every page of every timeline is as it must be, then checks it all under many queries.
    ///
    /// # Panics
    ///
    /// With the first answer that differs.
    pub async fn judge(&self, client: &Client, rng: &mut StdRng, effort: &Effort) -> Report {
        let settled = wait_until_settled(client, &self.model, &self.keys, Settled::Pages, PATIENCE).await;
        let took = settled.unwrap_or_else(|why| panic!("{why}"));
        let report = check_all(client, &self.model, &self.keys, rng, effort).await;
        report.unwrap_or_else(|why| panic!("settled after {took:?}, but: {why}"))
    }
}

/// Cuts records into batches of random sizes up to `batch_max`, many small and some large.
pub fn cut<'a>(records: &'a [Record], rng: &mut StdRng, batch_max: usize) -> Vec<&'a [Record]> {
    let mut batches = Vec::new();
    let mut rest = records;
    while !rest.is_empty() {
        let size_max = [1, 10, 100, batch_max][rng.random_range(0..4)].min(batch_max);
        let (batch, behind) = rest.split_at(rng.random_range(1..=size_max).min(rest.len()));
        batches.push(batch);
        rest = behind;
    }
    batches
}

fn foresee(history: &History, now: DateTime<Utc>) -> Model {
    let mut model = Model::new(RETENTION_DAYS);
    for record in &history.records {
        let taken = model.take(record, now);
        let is_refused = matches!(taken, Taken::Refused(_));
        assert_eq!(is_refused, record.flaw.is_some(), "the model's verdict on {record:?}: {taken:?}");
    }
    model
}

fn flaws(batch: &[Record]) -> Vec<&'static str> {
    batch.iter().filter_map(|record| record.flaw).collect()
}
