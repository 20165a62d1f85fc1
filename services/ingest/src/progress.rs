//! Until when everything that was published has passed a stage: for answers, which show it, and for metrics.
//!
//! It is told by what came before what, never by comparing clocks of two machines:
//!
//! - A stage asks where a partition ends, and notes when it asked. Once it has done everything before that end, everything that was
//!   acknowledged until then has passed. Where records wait, all that was appended before the first of them has.
//! - The second stage first reads how far the first has come, in all partitions of `mail.events`, and then where its own partitions
//!   end. What the first has passed on was in them by then. So once that end is done, its partition is as far as the first was.
//! - The least of all partitions of the second stage is visible. One that nobody reports on stays where it is, and with it the least.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use event_log::{Batch, LogError, Observer, Position, Topic};
use event_store::{EventStore, Stage, StoreError};
use telemetry::metrics;
use timeline::Timestamp;

use crate::Clock;

/// How often it is looked and told how far a stage has come.
const REPORT_EVERY: Duration = Duration::from_millis(500);

/// How far the partitions of one topic are done that this process holds. Clones are one.
#[derive(Clone)]
pub struct Progress {
    topic: Topic,
    held: Arc<Mutex<BTreeMap<i32, Held>>>,
}

/// A partition that is held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    claim: u64,
    /// Everything below is done; `None` until it is known where the group goes on.
    done: Option<i64>,
    /// Where the partition ended when that was last asked.
    end: Option<i64>,
    /// Everything that was acknowledged until then is done.
    until: Option<Timestamp>,
    /// Of the second stage: everything of `mail.events` that was acknowledged until then has passed this partition.
    covered: Option<Timestamp>,
    /// What is to be known once everything before an end is done.
    next: Option<Check>,
}

/// An end of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Check {
    end: i64,
    /// When it was asked for.
    asked_at: Timestamp,
    /// How far the stage before had come when it was asked for.
    before: Option<Timestamp>,
}

impl Held {
    fn advance(&mut self, done: i64) {
        self.done = self.done.max(Some(done));
        if let Some(check) = self.next.filter(|check| self.done >= Some(check.end)) {
            self.until = self.until.max(Some(check.asked_at));
            self.covered = self.covered.max(check.before);
            self.next = None;
        }
    }

    /// What is checked already goes first: under load there is always something behind the newest end.
    fn check(&mut self, check: Check) {
        // The topic was created again: what was done is of the one before.
        if self.done.is_some_and(|done| done > check.end) {
            (self.done, self.next, self.end) = (None, None, None);
            return;
        }
        self.end = Some(check.end);
        self.next.get_or_insert(check);
        if let Some(done) = self.done {
            self.advance(done);
        }
    }
}

impl Progress {
    /// Nothing is held yet of `topic`.
    pub fn new(topic: Topic) -> Progress {
        Progress { topic, held: Arc::default() }
    }

    /// Records are about to be worked on, those of a partition together; all before them are done.
    pub(crate) fn begins(&self, batch: &Batch) {
        let mut all = self.lock();
        for records in batch.records.chunk_by(|one, next| one.partition == next.partition) {
            let Some(claim) = batch.claims.get(&records[0].partition) else { continue };
            let held = all.entry(records[0].partition).or_default();
            // It may be looked at before anybody told that it is held.
            if held.claim < claim.0 {
                *held = Held { claim: claim.0, ..Held::default() };
            }
            if held.claim == claim.0 {
                held.until = held.until.max(Some(records[0].appended_at.minus_ms(1)));
            }
        }
    }

    /// Everything of a partition below `offset` is done and committed, under `claim`.
    pub(crate) fn done(&self, partition: i32, claim: u64, offset: i64, now: Timestamp) {
        let mut held = self.lock();
        let held = held.entry(partition).or_default();
        if held.claim > claim {
            return;
        }
        if held.claim < claim {
            *held = Held { claim, ..Held::default() };
        }
        held.advance(offset);
        let labels = [self.topic.name(), &partition.to_string()];
        metrics::COMMITTED_OFFSET.with_label_values(&labels).set(offset);
        metrics::COMMITTED_AT.with_label_values(&labels).set(seconds(now));
    }

    /// Looks and tells until it is dropped.
    pub(crate) async fn report(
        self,
        observer: Observer,
        told: Option<(Stage, Arc<dyn EventStore>)>,
        clock: Clock,
    ) {
        let mut ticks = tokio::time::interval(REPORT_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failed = false;
        loop {
            ticks.tick().await;
            self.hold(&observer.positions(), clock());
            let looked = self.look(&observer, told.as_ref(), &clock).await;
            self.show_lag(clock());
            // Once, not twice a second: what is away is told by others too.
            match looked {
                Ok(()) => failed = false,
                Err(error) if !failed => {
                    failed = true;
                    tracing::warn!(topic = self.topic.name(), error, "it cannot be told how far ingest is");
                }
                Err(_) => {}
            }
        }
    }

    async fn look(
        &self,
        observer: &Observer,
        told: Option<&(Stage, Arc<dyn EventStore>)>,
        clock: &Clock,
    ) -> Result<(), String> {
        let failed = |error: LogError| error.chain();
        let away = |error: StoreError| error.chain().to_string();
        let new: Vec<i32> =
            self.lock().iter().filter(|(_, held)| held.done.is_none()).map(|(at, _)| *at).collect();
        let starts = observer.starts(new).await.map_err(failed)?;
        // In this order: the stage before, how many partitions it has, the ends.
        let placed = match told {
            Some((Stage::Own, store)) => store.read_progress(Stage::Place).await.map_err(away),
            _ => Ok(Vec::new()),
        };
        let before = match &placed {
            Ok(placed) if !placed.is_empty() => {
                least(placed, observer.partitions_of(Topic::Events).await.map_err(failed)?)
            }
            _ => None,
        };
        let asked_at = clock();
        let partitions: Vec<i32> = self.lock().keys().copied().collect();
        let ends = observer.ends(partitions).await.map_err(failed)?;
        let positions = observer.positions();
        for (partition, held) in self.lock().iter_mut() {
            let position = positions.get(partition).filter(|position| position.claim.0 == held.claim);
            let (Some(position), Some(end)) = (position, ends.get(partition)) else {
                // Not known any more: an old end would have the lag sink to none.
                held.end = None;
                continue;
            };
            if held.done.is_none()
                && let Some(start) = starts.get(partition).filter(|start| *start <= end)
            {
                held.done = Some(*start);
                metrics::COMMITTED_OFFSET
                    .with_label_values(&[self.topic.name(), &partition.to_string()])
                    .set(*start);
            }
            held.check(Check { end: *end, asked_at, before });
            // What is behind the last record and is no record is done with it.
            if let (Some(done), Some(below)) = (held.done, position.no_record_below)
                && position.behind_last.is_none_or(|read| read <= done)
            {
                held.advance(below);
            }
        }
        if let Some((stage, store)) = told {
            // A record may say that it is from the future, where its sender sets the time.
            let reached = |held: &Held| {
                let reached = if *stage == Stage::Own { held.covered } else { held.until };
                reached.map(|reached| reached.min(asked_at))
            };
            let done: Vec<(i32, Timestamp)> =
                self.lock().iter().filter_map(|(at, held)| Some((*at, reached(held)?))).collect();
            store.write_progress(*stage, &done).await.map_err(away)?;
        }
        // What waits is known all the same.
        placed.map(|_| ())
    }

    /// Begins with what is held, and forgets what is no longer.
    fn hold(&self, positions: &HashMap<i32, Position>, now: Timestamp) {
        let mut held = self.lock();
        let gone: Vec<i32> = held.keys().copied().filter(|at| !positions.contains_key(at)).collect();
        for partition in gone {
            held.remove(&partition);
            self.forget(partition);
        }
        for (partition, position) in positions {
            let held = held.entry(*partition).or_default();
            if held.claim < position.claim.0 {
                *held = Held { claim: position.claim.0, ..Held::default() };
                let labels = [self.topic.name(), &partition.to_string()];
                metrics::COMMITTED_AT.with_label_values(&labels).set(seconds(now));
            }
        }
    }

    fn show_lag(&self, now: Timestamp) {
        for (partition, held) in self.lock().iter() {
            let labels = [self.topic.name(), &partition.to_string()];
            if let Some((done, end)) = held.done.zip(held.end) {
                metrics::LAG_MESSAGES.with_label_values(&labels).set((end - done).max(0));
            }
            let Some(until) = held.until else { continue };
            metrics::LAG_SECONDS.with_label_values(&labels).set((now.0 - until.0).max(0) / 1000);
        }
    }

    /// Whoever holds it now shows it.
    fn forget(&self, partition: i32) {
        let labels = [self.topic.name(), &partition.to_string()];
        // They may never have been set.
        let _ = metrics::LAG_MESSAGES.remove_label_values(&labels);
        let _ = metrics::LAG_SECONDS.remove_label_values(&labels);
        let _ = metrics::COMMITTED_OFFSET.remove_label_values(&labels);
        let _ = metrics::COMMITTED_AT.remove_label_values(&labels);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<i32, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The least of partitions `0..partitions`; `None` where there are none, or one is missing.
pub fn least(progress: &[(i32, Timestamp)], partitions: i32) -> Option<Timestamp> {
    let known: HashMap<i32, Timestamp> = progress.iter().copied().collect();
    let reached: Option<Vec<Timestamp>> =
        (0..partitions).map(|partition| known.get(&partition).copied()).collect();
    reached?.into_iter().min()
}

fn seconds(at: Timestamp) -> f64 {
    at.0 as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(end: i64, asked_at: i64, before: i64) -> Check {
        Check { end, asked_at: Timestamp(asked_at), before: Some(Timestamp(before)) }
    }

    #[test]
    fn of_a_log_that_begins_anew_nothing_is_done() {
        let mut held = Held { done: Some(1000), ..Held::default() };
        held.check(check(10, 2_000, 1_900));
        assert_eq!(held, Held::default());
        held.advance(10);
        held.check(check(10, 3_000, 2_900));
        assert_eq!((held.until, held.covered), (Some(Timestamp(3_000)), Some(Timestamp(2_900))));
    }

    #[test]
    fn an_end_counts_from_when_it_was_asked_for_once_all_before_it_is_done() {
        let mut held = Held { done: Some(5), ..Held::default() };
        held.check(check(8, 1_000, 900));
        assert_eq!((held.until, held.covered), (None, None));
        // Later ends do not push the first away.
        held.check(check(20, 2_000, 1_900));
        held.advance(7);
        assert_eq!(held.covered, None);
        held.advance(8);
        assert_eq!((held.until, held.covered), (Some(Timestamp(1_000)), Some(Timestamp(900))));
        // Nothing new is published: time goes on.
        held.check(check(8, 3_000, 2_900));
        assert_eq!((held.until, held.covered), (Some(Timestamp(3_000)), Some(Timestamp(2_900))));
    }

    #[test]
    fn nothing_is_known_before_it_is_known_where_the_group_goes_on() {
        let mut held = Held::default();
        held.check(check(0, 1_000, 900));
        assert_eq!(held.until, None);
        held.done = Some(0);
        held.check(check(0, 2_000, 1_900));
        assert_eq!(held.until, Some(Timestamp(1_000)));
    }

    #[test]
    fn a_first_stage_that_is_not_known_whole_covers_nothing() {
        let mut held = Held { done: Some(0), ..Held::default() };
        held.check(Check { end: 0, asked_at: Timestamp(1_000), before: None });
        assert_eq!((held.until, held.covered), (Some(Timestamp(1_000)), None));
    }

    #[test]
    fn a_commit_under_an_older_claim_says_nothing_of_the_newer() {
        let progress = Progress::new(Topic::Events);
        progress.done(0, 7, 100, Timestamp(0));
        progress.done(0, 6, 200, Timestamp(0));
        assert_eq!(progress.lock()[&0].done, Some(100));
        progress.done(0, 8, 50, Timestamp(0));
        let held = progress.lock()[&0].clone();
        assert_eq!((held.claim, held.done), (8, Some(50)));
    }

    #[test]
    fn the_least_wants_every_partition() {
        let at = |partition, until| (partition, Timestamp(until));
        assert_eq!(least(&[at(0, 5), at(1, 3)], 2), Some(Timestamp(3)));
        assert_eq!(least(&[at(0, 5), at(1, 3)], 3), None);
        assert_eq!(least(&[at(0, 5), at(1, 3)], 1), Some(Timestamp(5)));
        assert_eq!(least(&[], 0), None);
    }
}
