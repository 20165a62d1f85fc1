//! `backstamp reconcile`: proves that the ledger adds up: the log's events against rows, rows against tallies, campaigns against contacts.
//!
//! It reads while `ingest` runs. What differs is looked at again before it is told: a batch may be half done. Only a timeline's
//! owner may write its numbers, so `--repair` orders it to count again, by the internal topic that its rows come by. A row
//! that is missing comes back by its message, sent once more: a repeat, everywhere else.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use event_log::{Appender, KafkaAppender, KafkaConfig, Outgoing, Scan, Scanned, Stretch, Topic};
use event_store::EventStore;
use event_store::scylla::ScyllaStore;
use futures::stream::{self, StreamExt, TryStreamExt};
use ingest::kafka::outgoing_order;
use operate::fate::{Fate, Judge};
use operate::{Difference, Level, places, tree, views};
use serde_json::json;
use timeline::{AccountId, Event, Id, Order, Position, TimelineId, Timestamp};
use uuid::Uuid;

use crate::caught_up::wait_until_done;
use crate::keys::parse_account;
use crate::options::{
    FilterOptions, Instant, PipelineOptions, kafka_of, parse_contact, parse_id, parse_instant,
};
use crate::progress::Progress;
use crate::run::{say, system_clock};

/// Names the message that was sent once more: topic, partition and offset.
const RESENT_HEADER: &str = "backstamp.resent";
/// Records that are judged at a time.
const CHUNK_RECORDS: usize = 2000;
/// Timelines that are checked at a time.
const TIMELINES_AT_ONCE: usize = 16;
/// Messages with differences that are kept, to be looked at again.
const SUSPECTS_MAX: usize = 10_000;
/// How often two views that differ are compared, and how long to wait in between.
const VIEW_TRIES: u32 = 3;
const VIEW_PAUSE: Duration = Duration::from_secs(1);

/// Proves that the ledger adds up, for a campaign, a contact, or all that was published in a time: log against rows, rows against tallies at
/// every level, campaigns against contacts. Prints what differs. Ends with 0 where nothing does.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pipeline: PipelineOptions,
    #[command(flatten)]
    filter: FilterOptions,
    /// This account only.
    #[arg(long, value_parser = parse_account)]
    account: Option<AccountId>,
    /// This campaign of the account.
    #[arg(long, value_parser = parse_id, requires = "account", conflicts_with_all = ["contact", "since", "until"])]
    campaign: Option<Id>,
    /// This contact of the account.
    #[arg(long, value_parser = parse_contact, requires = "account", conflicts_with_all = ["since", "until"])]
    contact: Option<Uuid>,
    /// What was published since: 2026-04-17T14:23:05Z, or a span ago such as 24h.
    #[arg(long, value_parser = parse_instant)]
    since: Option<Instant>,
    /// What was published until.
    #[arg(long, value_parser = parse_instant)]
    until: Option<Instant>,
    /// All that the log holds.
    #[arg(long)]
    every: bool,
    /// Lets owners count again what is counted wrong, and sends messages again whose rows are missing.
    #[arg(long)]
    repair: bool,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// What was looked at.
#[derive(Debug, Default)]
struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    fn add(&mut self, what: &'static str, count: u64) {
        *self.0.entry(what).or_default() += count;
    }
}

/// A message whose rows are not all there, or that is not where it should be.
struct Suspect {
    scanned: Scanned,
    differences: Vec<Difference>,
}

struct Reconciler<'a> {
    options: &'a Options,
    kafka: KafkaConfig,
    store: ScyllaStore,
    retention_ms: i64,
    forgotten: HashSet<(AccountId, Uuid)>,
    counts: Counts,
    /// What of the numbers and views differs.
    differences: Vec<Difference>,
    suspects: Vec<Suspect>,
    /// Digests of the timelines that were checked already.
    checked: HashSet<u64>,
    hasher: RandomState,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let store = ScyllaStore::connect(&options.pipeline.scylla.config()).await?;
    let mut reconciler = Reconciler {
        kafka: kafka_of(store.live(), options.pipeline.kafka("backstamp-reconcile")?),
        store,
        retention_ms: options.pipeline.retention.retention_ms(),
        forgotten: HashSet::new(),
        options: &options,
        counts: Counts::default(),
        differences: Vec::new(),
        suspects: Vec::new(),
        checked: HashSet::new(),
        hasher: RandomState::new(),
    };
    Box::pin(reconciler.look()).await?;
    let found = reconciler.found();
    let mut left = found.clone();
    if options.repair && !found.is_empty() {
        Box::pin(reconciler.repair()).await?;
        left = reconciler.found();
    }
    let mended: Vec<&Difference> = found.iter().filter(|difference| !left.contains(difference)).collect();
    if options.json {
        say(&json!({
            "looked_at": reconciler.counts.0,
            "differences": left.iter().map(shown).collect::<Vec<_>>(),
            "mended": mended.iter().map(|difference| shown(difference)).collect::<Vec<_>>(),
        })
        .to_string());
    } else {
        for (word, list) in [("difference", left.iter().collect::<Vec<_>>()), ("mended", mended)] {
            for Difference { timeline, level, what } in list {
                let whose = timeline.as_ref().map_or_else(
                    || "log".to_owned(),
                    |timeline| format!("{} {}", timeline.account, timeline.subject),
                );
                say(&format!("{word}  {}  {whose}: {what}", level.name()));
            }
        }
        let counts: Vec<String> =
            reconciler.counts.0.iter().map(|(what, count)| format!("{count} {what}")).collect();
        say(&format!("looked at: {}", counts.join(", ")));
    }
    match left.len() {
        0 => Ok(()),
        count if options.repair => bail!("{count} differences could not be mended"),
        count => bail!("{count} differences"),
    }
}

fn shown(difference: &Difference) -> serde_json::Value {
    let Difference { timeline, level, what } = difference;
    json!({
        "level": level.name(),
        "account": timeline.as_ref().map(|timeline| timeline.account.as_str()),
        "timeline": timeline.as_ref().map(|timeline| timeline.subject.to_string()),
        "what": what,
    })
}

impl Reconciler<'_> {
    /// Everything that differs, each once.
    fn found(&self) -> Vec<Difference> {
        let of_suspects = self.suspects.iter().flat_map(|suspect| &suspect.differences);
        let mut found: Vec<Difference> = Vec::new();
        for difference in self.differences.iter().chain(of_suspects) {
            if !found.contains(difference) {
                found.push(difference.clone());
            }
        }
        found
    }

    async fn look(&mut self) -> anyhow::Result<()> {
        let options = self.options;
        self.forgotten = self.store.list_forgotten().await?.into_iter().collect();
        match (&options.account, &options.campaign, options.contact) {
            (Some(account), Some(campaign), _) => {
                self.timeline(&TimelineId::campaign(account, campaign)).await
            }
            (Some(account), None, Some(contact)) => {
                self.timeline(&TimelineId::contact(account, contact)).await
            }
            _ if options.since.is_some() || options.every => self.log().await,
            _ => bail!("what? Name a --campaign or a --contact of an --account, --since, or --every"),
        }
    }

    /// One timeline: its numbers, its pairs', and the other view.
    async fn timeline(&mut self, id: &TimelineId) -> anyhow::Result<()> {
        if !self.store.is_known(id).await? {
            bail!("nothing of account {} is known as {}", id.account, id.subject);
        }
        self.trees(vec![id.clone()]).await?;
        let pairs = views::pairs_of(&self.store, id).await?;
        self.trees(pairs).await?;
        self.differences.extend(self.views(id).await?);
        self.counts.add("views", 1);
        Ok(())
    }

    /// What the two views of a timeline's events go on to differ in.
    async fn views(&self, id: &TimelineId) -> anyhow::Result<Vec<Difference>> {
        let mut differences = views::compare(&self.store, id).await?;
        for _ in 1..VIEW_TRIES {
            if differences.is_empty() {
                break;
            }
            tokio::time::sleep(VIEW_PAUSE).await;
            let again = views::compare(&self.store, id).await?;
            differences.retain(|difference| again.contains(difference));
        }
        Ok(differences)
    }

    /// The numbers of timelines that were not checked yet.
    async fn trees(&mut self, ids: Vec<TimelineId>) -> anyhow::Result<()> {
        let new: Vec<TimelineId> =
            ids.into_iter().filter(|id| self.checked.insert(self.hasher.hash_one(id))).collect();
        let store = &self.store;
        let kept_since = system_clock()().minus_ms(self.retention_ms);
        let mut reports = stream::iter(new)
            .map(|id| async move { tree::check_at_rest(store, &id, kept_since).await })
            .buffer_unordered(TIMELINES_AT_ONCE);
        while let Some(report) = reports.try_next().await? {
            self.counts.add("timelines", 1);
            self.counts.add("rows counted", report.rows);
            if report.busy {
                self.counts.add("timelines too busy to tell", 1);
            }
            self.differences.extend(report.differences);
        }
        Ok(())
    }

    /// What was published in a time.
    async fn log(&mut self) -> anyhow::Result<()> {
        let now = system_clock()();
        let options = self.options;
        let stretch = Stretch {
            since: options.since.map(|since| since.at(now)),
            until: options.until.map(|until| until.at(now)),
        };
        // What is placed by now is judged once the owners have written it.
        let placed = event_log::committed(&self.kafka, Topic::Events).await?;
        wait_until_done(&self.kafka, Topic::CampaignEvents).await?;
        let letters = self.letters(stretch).await?;
        let mut scan = Scan::begin(&self.kafka, Topic::Events, stretch).await?;
        let progress = Progress::new("records", scan.total());
        loop {
            let mut records = scan.next(CHUNK_RECORDS).await?;
            if records.is_empty() {
                break;
            }
            progress.at(scan.read());
            let read = records.len();
            records.retain(|scanned| {
                placed.get(&scanned.record.partition).is_some_and(|next| scanned.record.offset < *next)
            });
            self.counts.add("records not done yet", (read - records.len()) as u64);
            let (suspects, timelines) = self.judge(records, &letters, true).await?;
            self.suspects.extend(suspects);
            self.trees(timelines).await?;
            if self.suspects.len() > SUSPECTS_MAX {
                bail!("over {SUSPECTS_MAX} messages differ: the first is {:?}", self.found().first());
            }
        }
        progress.finish();
        // They may have been on their way: an event that waited, and whose send came just now.
        if !self.suspects.is_empty() {
            wait_until_done(&self.kafka, Topic::CampaignEvents).await?;
            self.look_again(stretch).await?;
        }
        Ok(())
    }

    /// Judges the suspects once more, and lets go of those that are well.
    async fn look_again(&mut self, stretch: Stretch) -> anyhow::Result<()> {
        let letters = self.letters(Stretch { until: None, ..stretch }).await?;
        let records = std::mem::take(&mut self.suspects).into_iter().map(|suspect| suspect.scanned).collect();
        let (suspects, _) = self.judge(records, &letters, false).await?;
        self.suspects = suspects;
        Ok(())
    }

    /// The messages of `mail.events` that became dead letters, and those that stand there again since a letter was retried.
    async fn letters(&self, stretch: Stretch) -> anyhow::Result<HashSet<(i32, i64)>> {
        let mut scan =
            Scan::begin(&self.kafka, Topic::DeadLetters, Stretch { until: None, ..stretch }).await?;
        let mut letters = HashSet::new();
        loop {
            let next = scan.next(CHUNK_RECORDS).await?;
            if next.is_empty() {
                return Ok(letters);
            }
            letters.extend(next.iter().filter_map(|letter| {
                let is_of_events = letter.header("backstamp.topic")? == Topic::Events.name();
                let number = |name| letter.header(name)?.parse::<i64>().ok();
                let partition = i32::try_from(number("backstamp.partition")?).ok()?;
                is_of_events.then_some((partition, number("backstamp.offset")?))
            }));
        }
    }

    /// What of `records` is not as it should be, and the timelines that they show in.
    async fn judge(
        &mut self,
        records: Vec<Scanned>,
        letters: &HashSet<(i32, i64)>,
        counts: bool,
    ) -> anyhow::Result<(Vec<Suspect>, Vec<TimelineId>)> {
        let judge = Judge {
            store: &self.store,
            filter: &self.options.filter.list_management_urls,
            retention_ms: self.retention_ms,
            forgotten: &self.forgotten,
        };
        let messages: Vec<(&[u8], Timestamp)> = records
            .iter()
            .map(|scanned| (scanned.record.value.as_deref().unwrap_or_default(), scanned.record.appended_at))
            .collect();
        let fates = judge.judge(system_clock()(), &messages).await?;
        let mut wrong = HashMap::<usize, Vec<Difference>>::new();
        let mut wanted = BTreeMap::<TimelineId, BTreeSet<Position>>::new();
        let mut rows_of = Vec::new();
        let mut outcomes = Counts::default();
        for (at, fate) in fates.iter().enumerate() {
            let record = &records[at].record;
            match fate {
                Fate::Refused(refusal) => {
                    outcomes.add("dead letters", 1);
                    if !letters.contains(&(record.partition, record.offset)) {
                        let what = format!(
                            "message {}/{} is refused ({}), and is no dead letter",
                            record.partition, record.offset, refusal.code
                        );
                        wrong.entry(at).or_default().push(of_log(Level::LogAndLetters, what));
                    }
                }
                Fate::Filtered(event) => self.count(&mut outcomes, "list-management clicks", event),
                Fate::Expired(event) => self.count(&mut outcomes, "expired when they came", event),
                Fate::Gone(event) => self.count(&mut outcomes, "expired since", event),
                Fate::Forgotten(event) => self.count(&mut outcomes, "of forgotten contacts", event),
                Fate::Shown(shown) if !self.is_wanted(&shown.event) => {}
                Fate::Shown(shown) => {
                    let event = &shown.event;
                    let waits = shown.needs.is_some() && shown.facts.is_none();
                    outcomes.add(if waits { "events that wait for their send" } else { "events" }, 1);
                    if waits && !shown.waits && shown.rows.is_empty() {
                        let what = format!(
                            "event {} of account {}, message {}/{}, shows nowhere and does not wait for its send",
                            event.id, event.account, record.partition, record.offset
                        );
                        wrong.entry(at).or_default().push(of_log(Level::LogAndRows, what));
                    }
                    for row in &shown.rows {
                        let (timeline, position) = (row.timeline.clone(), row.key.position.clone());
                        wanted.entry(timeline.clone()).or_default().insert(position.clone());
                        rows_of.push((at, timeline, position));
                    }
                }
            }
        }
        outcomes.add("rows looked for", rows_of.len() as u64);
        let timelines = wanted.keys().cloned().collect();
        let missing = places::missing(&self.store, wanted).await?;
        for (at, timeline, position) in rows_of {
            if !missing.get(&timeline).is_some_and(|positions| positions.contains(&position)) {
                continue;
            }
            let record = &records[at].record;
            let what = format!(
                "lacks event {} of {}, message {}/{}",
                position.id,
                position.at.to_rfc3339(),
                record.partition,
                record.offset
            );
            let timeline = Some(timeline);
            wrong.entry(at).or_default().push(Difference { timeline, level: Level::LogAndRows, what });
        }
        if counts {
            for (what, count) in outcomes.0 {
                self.counts.add(what, count);
            }
        }
        let suspects = records.into_iter().enumerate().filter_map(|(at, scanned)| {
            wrong.remove(&at).map(|differences| Suspect { scanned, differences })
        });
        Ok((suspects.collect(), timelines))
    }

    fn is_wanted(&self, event: &Event) -> bool {
        self.options.account.as_ref().is_none_or(|account| *account == event.account)
    }

    fn count(&self, outcomes: &mut Counts, what: &'static str, event: &Event) {
        outcomes.add(what, u64::from(self.is_wanted(event)));
    }

    /// Mends what can be, and looks at it again.
    async fn repair(&mut self) -> anyhow::Result<()> {
        let counted_wrong =
            self.differences.iter().filter(|difference| difference.level.is_mended_by_recount());
        // An owner may remember a row that the store has lost, and would take its message for a repeat.
        let incomplete = self.suspects.iter().flat_map(|suspect| &suspect.differences);
        let recounted: BTreeSet<TimelineId> =
            counted_wrong.chain(incomplete).filter_map(|difference| difference.timeline.clone()).collect();
        let appender = KafkaAppender::new(&self.kafka, &[Topic::CampaignEvents, Topic::Events])?;
        let orders = recounted.iter().map(|timeline| outgoing_order(&Order::Recount(timeline.clone())));
        appender.append(orders.collect()).await.context("the owners could not be asked to count again")?;
        wait_until_done(&self.kafka, Topic::CampaignEvents).await?;
        let resent: Vec<Outgoing> = self
            .suspects
            .iter()
            .filter(|suspect| suspect.differences.iter().any(|of| of.level == Level::LogAndRows))
            .map(|Suspect { scanned: Scanned { record, .. }, .. }| {
                let place = format!("{}/{}/{}", Topic::Events.name(), record.partition, record.offset);
                let (key, value) = (&record.key, &record.value);
                Outgoing {
                    headers: vec![(RESENT_HEADER, place)],
                    ..Outgoing::new(
                        Topic::Events,
                        key.as_ref().map(|key| key.to_vec()),
                        value.as_ref().map(|value| value.to_vec()),
                    )
                }
            })
            .collect();
        if !resent.is_empty() {
            self.counts.add("messages sent again", resent.len() as u64);
            appender.append(resent).await.context("messages could not be sent again")?;
            wait_until_done(&self.kafka, Topic::Events).await?;
            wait_until_done(&self.kafka, Topic::CampaignEvents).await?;
        }
        self.counts.add("timelines recounted", recounted.len() as u64);

        let views: Vec<Difference> = std::mem::take(&mut self.differences)
            .into_iter()
            .filter(|difference| !difference.level.is_mended_by_recount())
            .collect();
        self.checked.clear();
        self.trees(recounted.into_iter().collect()).await?;
        self.differences.extend(views);
        let now = system_clock()();
        let since = self.options.since.map(|since| since.at(now));
        self.look_again(Stretch { since, until: None }).await
    }
}

/// A difference that is of no timeline.
fn of_log(level: Level, what: String) -> Difference {
    Difference { timeline: None, level, what }
}
