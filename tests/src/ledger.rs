//! The ledger: each event that was acknowledged is in exactly one of projected, filtered, expired, dead-lettered, and
//! waiting for its send; and nothing else is anywhere.
//!
//! What was taken in is what lies in the log, whoever put it there, and the log is read back whole. The [`Model`]
//! says from it what became of each record. That is held against what is stored, read through CQL; against the dead
//! letters; against the offsets that are committed; and against the answers of every campaign and contact: each page
//! of each, and the total that it shows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use anyhow::ensure;
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use rand::rngs::StdRng;
use scylla::deserialize::row::DeserializeRow;

use crate::check::{Effort, Report, Settled, check_all, wait_until_settled};
use crate::client::Client;
use crate::deployment::{DEAD, Deployment, Logged, count_values};
use crate::history::{Record, Topic};
use crate::model::{Fate, Identity, Model, Taken};
use crate::{eventually, servers};

const PATIENCE: Duration = Duration::from_secs(180);
/// How long an ingest that comes back may take to see that others have done its work.
const SETTLE_PATIENCE: Duration = Duration::from_secs(40);
const RETENTION_DAYS: u32 = 180;
const SHOWN_MAX: usize = 5;

/// What became of all that was taken in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Events on every timeline that shows them.
    pub projected: usize,
    /// Events that are kept out of all timelines.
    pub filtered: usize,
    /// Events past retention when they came.
    pub expired: usize,
    /// Records that are no events.
    pub dead_lettered: usize,
    /// Events whose send has not come.
    pub waiting: usize,
    /// Records of events that were known already.
    pub repeats: usize,
    /// References, and deletions of them.
    pub references: usize,
    /// What was read and found right.
    pub answers: Report,
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { projected, filtered, expired, dead_lettered, waiting, repeats, references, answers } =
            self;
        write!(
            f,
            "{projected} projected, {filtered} filtered, {expired} expired, {dead_lettered} dead-lettered, {waiting} waiting, \
             {repeats} repeats, {references} references; {answers}"
        )
    }
}

/// What a ledger is drawn up of.
pub struct Books<'a> {
    /// Where.
    pub deployment: &'a Deployment,
    /// The key of each account.
    pub keys: &'a BTreeMap<String, String>,
    /// What was acknowledged, and is to be found in the log.
    pub acknowledged: &'a [Record],
    /// What lay in the log once, was done, and lies there no more.
    pub gone: &'a [Logged],
    /// Reads the answers.
    pub client: &'a Client,
}

impl Books<'_> {
    /// Waits until all is done, and balances.
    ///
    /// # Panics
    ///
    /// With what does not.
    pub async fn balance(&self, rng: &mut StdRng, effort: &Effort) -> Ledger {
        self.deployment.wait_until_done().await;
        let log = self.deployment.log().await;
        self.check_acknowledged(&log);

        let mut model = Model::new(RETENTION_DAYS);
        let mut ledger = Ledger::default();
        let mut refused = BTreeSet::new();
        for (topic, record) in self.gone.iter().chain(&log) {
            let time = record.timestamp_ms.and_then(DateTime::from_timestamp_millis).unwrap_or_else(Utc::now);
            match model.take(&taken_in(*topic, record), time) {
                Taken::Kept => {}
                Taken::Repeat => ledger.repeats += 1,
                Taken::Expired => ledger.expired += 1,
                Taken::Reference => ledger.references += 1,
                Taken::Refused(_) => {
                    ledger.dead_lettered += 1;
                    refused.insert(self.letter_of(*topic, record));
                }
            }
        }
        let fates = model.fates();
        for fate in fates.values() {
            *match fate {
                Fate::Projected { .. } => &mut ledger.projected,
                Fate::Filtered => &mut ledger.filtered,
                Fate::Waiting { .. } => &mut ledger.waiting,
            } += 1;
        }

        self.check_dead_letters(&refused).await;
        self.check_stored(&fates).await;
        let settled = wait_until_settled(self.client, &model, self.keys, Settled::Pages, PATIENCE).await;
        let took = settled.unwrap_or_else(|why| panic!("{why}"));
        let report = check_all(self.client, &model, self.keys, rng, effort).await;
        ledger.answers = report.unwrap_or_else(|why| panic!("settled after {took:?}, but: {why}"));
        assert_eq!(self.deployment.lag().await, 0, "records that are not done, after all");
        ledger
    }

    /// Each record that was acknowledged lies in the log, as often as it was; the intake leaves out the white space around one.
    fn check_acknowledged(&self, log: &[Logged]) {
        let mut left = count_values(log);
        for record in self.acknowledged {
            let value = record.value.as_deref().unwrap_or_default().trim_ascii();
            match left.get_mut(value) {
                Some(count) if *count > 0 => *count -= 1,
                _ => panic!("the log has lost what it acknowledged: {}", String::from_utf8_lossy(value)),
            }
        }
    }

    fn letter_of(&self, topic: Topic, record: &crate::kafka::Record) -> Letter {
        let topic = match topic {
            Topic::Events => crate::deployment::EVENTS,
            Topic::References => crate::deployment::REFERENCES,
        };
        let payload = record.payload.clone().unwrap_or_default();
        (topic.to_owned(), record.partition, record.offset, payload)
    }

    /// The dead letters are the refused records, byte for byte, each at least once, and no others.
    async fn check_dead_letters(&self, refused: &BTreeSet<Letter>) {
        let mut found = BTreeSet::new();
        for letter in self.deployment.topics.consume_all(DEAD).await {
            let header = |name| letter.header(name).unwrap_or_else(|| panic!("no {name}: {letter:?}"));
            let number = |name| header(name).parse::<i64>().expect("a number");
            let partition = i32::try_from(number("backstamp.partition")).expect("a partition");
            assert!(!header("backstamp.code").is_empty() && !header("backstamp.message").is_empty());
            let topic = header("backstamp.topic").to_owned();
            found.insert((
                topic,
                partition,
                number("backstamp.offset"),
                letter.payload.clone().unwrap_or_default(),
            ));
        }
        ensure_same("dead letters", refused, &found).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Rows stand for each event that shows somewhere, an entry for each that waits, and neither for what was filtered, expired
    /// or refused.
    async fn check_stored(&self, fates: &BTreeMap<Identity, Fate>) {
        let of = |wanted: fn(&Fate) -> bool| -> BTreeSet<Identity> {
            fates.iter().filter(|(_, fate)| wanted(fate)).map(|(identity, _)| identity.clone()).collect()
        };
        let shown =
            of(|fate| matches!(fate, Fate::Projected { is_shown: true } | Fate::Waiting { is_shown: true }));
        // A contact has rows of types that its timeline does not show.
        let may_stand = of(|fate| !matches!(fate, Fate::Filtered));
        let waiting = of(|fate| matches!(fate, Fate::Waiting { .. }));
        // An ingest that lost its partitions may put an event to wait that it takes off again the next moment.
        eventually(SETTLE_PATIENCE, async || {
            let rows = self.identities("timeline_rows").await;
            ensure_same("events with rows", &shown, &rows.intersection(&shown).cloned().collect())?;
            ensure_same(
                "rows, by what may have some",
                &rows,
                &rows.intersection(&may_stand).cloned().collect(),
            )?;
            ensure_same("events that wait", &waiting, &self.identities("waiting").await)
        })
        .await;
    }

    async fn identities(&self, table: &str) -> BTreeSet<Identity> {
        let select = format!("SELECT account_id, event_id, occurred_at FROM keyspace.{table}");
        read_all::<Identity>(self.deployment, &select).await.into_iter().collect()
    }
}

/// Everything that a statement on the deployment's tables selects; `keyspace.` stands for theirs.
///
/// # Panics
///
/// Where the node does not answer.
pub async fn read_all<T>(deployment: &Deployment, select: &str) -> Vec<T>
where
    T: for<'f, 'm> DeserializeRow<'f, 'm> + 'static,
{
    let session = servers::session(&deployment.addresses.store).await;
    let select = select.replace("keyspace.", &format!("{}.", deployment.keyspace));
    let rows = session.query_iter(select, ()).await.expect("the node selects");
    rows.rows_stream::<T>().expect("columns as they are read").try_collect().await.expect("all rows come")
}

/// A dead letter: whence it came, and its bytes.
type Letter = (String, i32, i64, Vec<u8>);

fn taken_in(topic: Topic, record: &crate::kafka::Record) -> Record {
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    Record {
        account: String::new(),
        topic,
        key: record.key.as_ref().map(text),
        value: record.payload.clone(),
        flaw: None,
        is_postable: false,
    }
}

fn ensure_same<T: Ord + fmt::Debug>(
    what: &str,
    wanted: &BTreeSet<T>,
    found: &BTreeSet<T>,
) -> anyhow::Result<()> {
    let missing: Vec<_> = wanted.difference(found).take(SHOWN_MAX).collect();
    let extra: Vec<_> = found.difference(wanted).take(SHOWN_MAX).collect();
    ensure!(
        missing.is_empty() && extra.is_empty(),
        "{what}: {} of {} are missing, such as {missing:?}; {} are there that are not to be, such as {extra:?}",
        wanted.difference(found).count(),
        wanted.len(),
        found.difference(wanted).count(),
    );
    Ok(())
}
