//! `backstamp dead-letters`: what is in `mail.events.dead`, and what is to become of it.
//!
//! A letter is known by the place where its message stood, so that one message that became two letters is one. What was
//! done with it stands in the table `dead_letters`. To send one again is to claim it by a conditional write, to send it
//! with a header that names the place, and to mark it as sent. Where a run ended between the two, a later one looks in
//! the topic whether the message is there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use event_log::{Appender, KafkaAppender, KafkaConfig, Outgoing, Scan, Scanned, Stretch, Topic};
use event_store::StoreError;
use event_store::scylla::{LetterMark, LetterState, ScyllaStore};
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use timeline::event::decode_event;
use timeline::reference::decode_reference;
use timeline::row::decode_placed;
use timeline::time::DAY_MS;
use timeline::{AccountId, Refusal, Timestamp};
use uuid::Uuid;

use crate::keys::parse_account;
use crate::options::{KafkaOptions, RetentionOptions, ScyllaOptions, parse_instant};
use crate::progress::Progress;
use crate::run::{say, system_clock};

/// Names the letter that a message was.
const RETRIED_HEADER: &str = "backstamp.retried";
/// Letters that are dealt with at a time.
const CHUNK_LETTERS: usize = 500;
/// Bytes of messages that are sent at a time.
const CHUNK_BYTES: usize = 8 << 20;
/// Conditional writes under way.
const MARKS_AT_ONCE: usize = 32;
/// A claim that is older than this is of a run that has ended: twice as long as an append may take.
const CLAIM_MS_MAX: i64 = 60_000;
/// How far the clocks of brokers and of whoever claimed may be apart.
const CLOCKS_MS_MAX: i64 = 600_000;

/// Dead letters: lists, shows, sends again, drops.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Lists letters, oldest first: a line each, without their contents.
    List(ListOptions),
    /// Shows letters whole, as they came: they may hold addresses.
    Show(ShowOptions),
    /// Sends letters to their topic again, each exactly once; those that would be refused again stay. It can be stopped and run again at any time.
    Retry(RetryOptions),
    /// Leaves letters alone from now on: `list` shows them no more.
    Drop(DropOptions),
}

#[derive(Args)]
struct Where {
    #[command(flatten)]
    kafka: KafkaOptions,
    #[command(flatten)]
    scylla: ScyllaOptions,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// Which letters.
#[derive(Args)]
struct Which {
    /// Places, as `list` shows them: topic/partition/offset of the message.
    places: Vec<String>,
    /// With this code.
    #[arg(long, value_delimiter = ',')]
    code: Vec<String>,
    /// Whose message names this account.
    #[arg(long, value_parser = parse_account)]
    account: Option<AccountId>,
    /// Put aside since: 2026-04-17T14:23:05Z, or a span ago such as 24h.
    #[arg(long, value_parser = parse_instant)]
    since: Option<crate::options::Instant>,
    /// Put aside until.
    #[arg(long, value_parser = parse_instant)]
    until: Option<crate::options::Instant>,
}

#[derive(Args)]
pub(crate) struct ListOptions {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    which: Which,
    /// Those that were retried or dropped, too.
    #[arg(long)]
    all: bool,
}

#[derive(Args)]
pub(crate) struct ShowOptions {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    which: Which,
}

#[derive(Args)]
pub(crate) struct RetryOptions {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    retention: RetentionOptions,
    /// Every letter that was not dealt with.
    #[arg(long)]
    every: bool,
    /// Says what would be accepted now, and sends nothing.
    #[arg(long)]
    dry_run: bool,
    /// Those, too, that this program would refuse again.
    #[arg(long)]
    refused_too: bool,
}

#[derive(Args)]
pub(crate) struct DropOptions {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    which: Which,
    /// Every letter that was not dealt with.
    #[arg(long)]
    every: bool,
}

pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::List(options) => Box::pin(list(options)).await,
        Command::Show(options) => Box::pin(show(options)).await,
        Command::Retry(options) => Box::pin(retry(options)).await,
        Command::Drop(options) => Box::pin(drop_letters(options)).await,
    }
}

impl Which {
    fn check_chosen(&self, every: bool) -> anyhow::Result<()> {
        let none = self.places.is_empty() && self.code.is_empty() && self.account.is_none();
        if none && self.since.is_none() && self.until.is_none() && !every {
            bail!("which letters? Name places, --code, --account, --since, --until, or --every");
        }
        Ok(())
    }

    fn stretch(&self, now: Timestamp) -> Stretch {
        Stretch { since: self.since.map(|at| at.at(now)), until: self.until.map(|at| at.at(now)) }
    }

    fn has(&self, letter: &Letter) -> bool {
        (self.places.is_empty() || self.places.contains(&letter.place))
            && (self.code.is_empty() || self.code.contains(&letter.code))
            && self.account.as_ref().is_none_or(|account| letter.account.as_deref() == Some(account.as_str()))
    }
}

/// A message that was put aside.
struct Letter {
    /// Where its message stood: `{topic}/{partition}/{offset}`. Where a letter does not say, its own place.
    place: String,
    /// The topic that it goes back to.
    topic: Topic,
    /// The partition that its message stood in.
    partition: Option<i32>,
    code: String,
    message: String,
    /// The account that it names, if that much of it can be read.
    account: Option<String>,
    put_aside_at: Timestamp,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
}

impl Letter {
    fn of(scanned: Scanned) -> Letter {
        let text = |name: &str| scanned.header(name).map(str::to_owned);
        let topic = text("backstamp.topic")
            .and_then(|name| Topic::ALL.into_iter().find(|topic| topic.name() == name));
        let partition = text("backstamp.partition").and_then(|partition| partition.parse().ok());
        let offset = text("backstamp.offset").and_then(|offset| offset.parse::<i64>().ok());
        let (code, message) = (text("backstamp.code"), text("backstamp.message"));
        let record = scanned.record;
        let place = match (topic, partition, offset) {
            (Some(topic), Some(partition), Some(offset)) => place_of(topic, partition, offset),
            _ => place_of(Topic::DeadLetters, record.partition, record.offset),
        };
        Letter {
            place,
            topic: topic.unwrap_or(Topic::Events),
            partition,
            code: code.unwrap_or_default(),
            message: message.unwrap_or_default(),
            account: record.value.as_deref().and_then(account_of),
            put_aside_at: record.appended_at,
            key: record.key.map(|key| key.to_vec()),
            value: record.value.map(|value| value.to_vec()),
        }
    }

    fn bytes(&self) -> usize {
        self.value.as_ref().map_or(0, Vec::len)
    }

    /// What would become of it now.
    fn judge(&self, now: Timestamp, retention_ms: i64) -> Result<&'static str, Refusal> {
        let value = self.value.as_deref();
        match self.topic {
            Topic::Events | Topic::DeadLetters => decode_event(value.unwrap_or_default(), now)
                .map(|event| if event.at.plus_ms(retention_ms) < now { "expired" } else { "accepted" }),
            Topic::References => decode_reference(self.key.as_deref(), value).map(|_| "accepted"),
            Topic::CampaignEvents => decode_placed(value.unwrap_or_default())
                .map(|_| "accepted")
                .map_err(|damaged| Refusal::new(timeline::event::code::MALFORMED_JSON, damaged.to_string())),
        }
    }

    /// The message again.
    fn outgoing(&self) -> Outgoing {
        Outgoing {
            // The internal topic's partitions mean something.
            partition: self.partition.filter(|_| self.topic == Topic::CampaignEvents),
            headers: vec![(RETRIED_HEADER, self.place.clone())],
            ..Outgoing::new(self.topic, self.key.clone(), self.value.clone())
        }
    }

    fn shown(&self, mark: Option<&LetterMark>) -> Value {
        json!({
            "place": self.place,
            "code": self.code,
            "message": self.message,
            "account": self.account,
            "put_aside_at": self.put_aside_at.to_rfc3339(),
            "bytes": self.bytes(),
            "state": mark.map(|mark| mark.state.name()),
            "state_since": mark.map(|mark| mark.at.to_rfc3339()),
        })
    }
}

fn place_of(topic: Topic, partition: i32, offset: i64) -> String {
    format!("{}/{partition}/{offset}", topic.name())
}

/// The account that a message names, however broken the rest of it is.
fn account_of(value: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        account_id: Option<String>,
    }
    serde_json::from_slice::<Named>(value).ok()?.account_id
}

/// The letters of a stretch, each message once.
struct Letters<'a> {
    scan: Scan,
    which: &'a Which,
    seen: HashSet<String>,
    progress: Progress,
}

impl Letters<'_> {
    async fn open<'a>(kafka: &KafkaConfig, which: &'a Which, now: Timestamp) -> anyhow::Result<Letters<'a>> {
        let scan = Scan::begin(kafka, Topic::DeadLetters, which.stretch(now)).await?;
        let progress = Progress::new("letters", scan.total());
        Ok(Letters { scan, which, seen: HashSet::new(), progress })
    }

    /// The next ones; none at the end.
    async fn next(&mut self) -> anyhow::Result<Vec<Letter>> {
        let (mut letters, mut bytes) = (Vec::new(), 0);
        while letters.len() < CHUNK_LETTERS && bytes < CHUNK_BYTES {
            let scanned = self.scan.next(CHUNK_LETTERS - letters.len()).await?;
            if scanned.is_empty() {
                break;
            }
            self.progress.at(self.scan.read());
            for letter in scanned.into_iter().map(Letter::of) {
                if self.which.has(&letter) && self.seen.insert(letter.place.clone()) {
                    bytes += letter.bytes();
                    letters.push(letter);
                }
            }
        }
        Ok(letters)
    }

    /// The places that were named and are not among the letters.
    fn missing(&self) -> Vec<&str> {
        self.which.places.iter().filter(|place| !self.seen.contains(*place)).map(String::as_str).collect()
    }
}

async fn list(options: ListOptions) -> anyhow::Result<()> {
    let now = system_clock()();
    let kafka = options.at.kafka.config("backstamp-dead-letters", "")?;
    let store = ScyllaStore::connect(&options.at.scylla.config()).await?;
    let marks = store.letter_marks().await?;
    let mut letters = Letters::open(&kafka, &options.which, now).await?;
    let mut listed = Vec::new();
    loop {
        let next = letters.next().await?;
        if next.is_empty() {
            break;
        }
        // Their contents are not kept: there may be many.
        listed.extend(
            next.into_iter().filter(|letter| options.all || !marks.contains_key(&letter.place)).map(
                |letter| {
                    let mark = marks.get(&letter.place);
                    (letter.put_aside_at, letter.shown(mark))
                },
            ),
        );
    }
    letters.progress.finish();
    listed.sort_by_key(|(at, _)| *at);
    if options.at.json {
        let listed: Vec<&Value> = listed.iter().map(|(_, letter)| letter).collect();
        say(&serde_json::to_string(&listed)?);
        return Ok(());
    }
    for (_, letter) in &listed {
        let text = |name: &str| letter[name].as_str().unwrap_or("-").to_owned();
        let state = letter["state"]
            .as_str()
            .map_or_else(String::new, |state| format!("  {state} {}", text("state_since")));
        say(&format!(
            "{}  {}  {}  {}  {} bytes{state}  {}",
            text("place"),
            text("put_aside_at"),
            text("account"),
            text("code"),
            letter["bytes"],
            text("message")
        ));
    }
    Ok(())
}

async fn show(options: ShowOptions) -> anyhow::Result<()> {
    options.which.check_chosen(false)?;
    let now = system_clock()();
    let kafka = options.at.kafka.config("backstamp-dead-letters", "")?;
    let store = ScyllaStore::connect(&options.at.scylla.config()).await?;
    let marks = store.letter_marks().await?;
    let mut letters = Letters::open(&kafka, &options.which, now).await?;
    loop {
        let next = letters.next().await?;
        if next.is_empty() {
            break;
        }
        for letter in next {
            let mut shown = letter.shown(marks.get(&letter.place));
            for (name, bytes) in [("key", &letter.key), ("value", &letter.value)] {
                match bytes.as_deref().map(std::str::from_utf8) {
                    None => shown[name] = Value::Null,
                    Some(Ok(text)) => shown[name] = text.into(),
                    Some(Err(_)) => {
                        let hex =
                            bytes.iter().flatten().map(|byte| format!("{byte:02x}")).collect::<String>();
                        shown[format!("{name}_hex")] = hex.into();
                    }
                }
            }
            if options.at.json {
                say(&shown.to_string());
            } else {
                for (name, value) in shown.as_object().into_iter().flatten() {
                    say(&format!(
                        "{name}: {}",
                        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
                    ));
                }
                say("");
            }
        }
    }
    letters.progress.finish();
    no_letter(&letters.missing())
}

fn no_letter(missing: &[&str]) -> anyhow::Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    bail!("no such letter: {}: `backstamp dead-letters list --all` shows the places", missing.join(", "))
}

/// What came of letters, counted.
#[derive(Default)]
struct Outcomes(BTreeMap<&'static str, u64>);

impl Outcomes {
    fn add(&mut self, outcome: &'static str, count: usize) {
        *self.0.entry(outcome).or_default() += count as u64;
    }

    fn of(&self, outcome: &str) -> u64 {
        self.0.get(outcome).copied().unwrap_or(0)
    }

    fn print(&self, json: bool, letters: &[Value]) {
        if json {
            let mut report = json!(self.0);
            if !letters.is_empty() {
                report["letters"] = json!(letters);
            }
            say(&report.to_string());
            return;
        }
        let counts: Vec<String> =
            self.0.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
        say(&if counts.is_empty() { "no letters".to_owned() } else { counts.join(", ") });
    }
}

async fn retry(options: RetryOptions) -> anyhow::Result<()> {
    options.which.check_chosen(options.every)?;
    let clock = system_clock();
    let kafka = options.at.kafka.config("backstamp-dead-letters", "")?;
    let retrier = Retrier {
        appender: KafkaAppender::new(&kafka, &[Topic::Events, Topic::References, Topic::CampaignEvents])?,
        store: ScyllaStore::connect(&options.at.scylla.config()).await?,
        kafka,
        run: Uuid::new_v4(),
    };
    let marks = retrier.store.letter_marks().await?;
    let now = clock();
    let retention_ms = i64::from(options.retention.retention_days) * DAY_MS;
    let mut letters = Letters::open(&retrier.kafka, &options.which, now).await?;
    let (mut outcomes, mut told) = (Outcomes::default(), Vec::new());
    let sent_before = match options.dry_run {
        true => HashSet::new(),
        false => retrier.sent_before(&marks).await?,
    };
    loop {
        let next = letters.next().await?;
        if next.is_empty() {
            break;
        }
        let mut chosen = Vec::new();
        for letter in next {
            let mark = marks.get(&letter.place).copied();
            // A letter that was dropped is retried where it is named.
            let is_named = options.which.places.contains(&letter.place);
            match mark.map(|mark| mark.state) {
                Some(LetterState::Retried) => {
                    outcomes.add("retried before", 1);
                    continue;
                }
                Some(LetterState::Dropped) if !is_named => {
                    outcomes.add("dropped before", 1);
                    continue;
                }
                _ => {}
            }
            let judged = letter.judge(now, retention_ms);
            if options.dry_run {
                let (outcome, refusal) = match &judged {
                    Ok(outcome) => (*outcome, None),
                    Err(refusal) => ("refused", Some(refusal)),
                };
                outcomes.add(outcome, 1);
                let code = refusal.map(|refusal| refusal.code);
                let message = refusal.map(|refusal| refusal.message.as_str());
                if options.at.json {
                    told.push(json!({ "place": letter.place, "outcome": outcome, "code": code, "message": message }));
                } else {
                    let why = refusal.map_or_else(String::new, |refusal| format!("  {refusal}"));
                    say(&format!("{}  {outcome}{why}", letter.place));
                }
            } else if judged.is_err() && !options.refused_too {
                outcomes.add("refused", 1);
            } else {
                chosen.push((letter, mark));
            }
        }
        retrier.send(chosen, (now, clock()), &sent_before, &mut outcomes).await?;
    }
    letters.progress.finish();
    outcomes.print(options.at.json, &told);
    no_letter(&letters.missing())?;
    match outcomes.of("in work") {
        0 => Ok(()),
        count => bail!(
            "{count} letters are being retried by another run, or were by one that ended within {} s: run this again then",
            CLAIM_MS_MAX / 1000
        ),
    }
}

/// Sends letters again.
struct Retrier {
    appender: KafkaAppender,
    store: ScyllaStore,
    kafka: KafkaConfig,
    run: Uuid,
}

impl Retrier {
    /// Of the letters that earlier runs were about to send when they ended, those whose message is in its topic again.
    async fn sent_before(&self, marks: &HashMap<String, LetterMark>) -> anyhow::Result<HashSet<String>> {
        let unsure = marks.iter().filter(|(_, mark)| mark.state == LetterState::Retrying);
        let mut since = HashMap::<Topic, Timestamp>::new();
        for (place, mark) in unsure {
            let topic = place.split('/').next().unwrap_or_default();
            let topic = Topic::ALL.into_iter().find(|known| known.name() == topic);
            // A letter that does not say where it came from went to the events.
            let topic = topic.filter(|topic| *topic != Topic::DeadLetters).unwrap_or(Topic::Events);
            let since = since.entry(topic).or_insert(mark.at);
            *since = mark.at.min(*since);
        }
        let mut sent = HashSet::new();
        for (topic, since) in since {
            let stretch = Stretch { since: Some(since.minus_ms(CLOCKS_MS_MAX)), until: None };
            let mut scan = Scan::begin(&self.kafka, topic, stretch).await?;
            let progress = Progress::new("looking for what was sent", scan.total());
            loop {
                let next = scan.next(CHUNK_LETTERS).await?;
                if next.is_empty() {
                    break;
                }
                progress.at(scan.read());
                sent.extend(
                    next.iter().filter_map(|scanned| Some(scanned.header(RETRIED_HEADER)?.to_owned())),
                );
            }
            progress.finish();
        }
        Ok(sent)
    }

    async fn send(
        &self,
        letters: Vec<(Letter, Option<LetterMark>)>,
        times: (Timestamp, Timestamp),
        sent_before: &HashSet<String>,
        outcomes: &mut Outcomes,
    ) -> anyhow::Result<()> {
        let claims: Vec<(Letter, Claimed)> = stream::iter(letters)
            .map(|(letter, seen)| async move {
                let claimed = self.claim(&letter, seen, times, sent_before).await?;
                Ok::<_, StoreError>((letter, claimed))
            })
            .buffered(MARKS_AT_ONCE)
            .try_collect()
            .await?;
        let mut ours = Vec::new();
        for (letter, claimed) in claims {
            match claimed {
                Claimed::Ours(mark) => ours.push((letter, mark)),
                Claimed::Sent => outcomes.add("retried before", 1),
                Claimed::InWork => outcomes.add("in work", 1),
            }
        }
        if ours.is_empty() {
            return Ok(());
        }
        let outgoing = ours.iter().map(|(letter, _)| letter.outgoing()).collect();
        self.appender.append(outgoing).await.context(
            "some of these letters may have been sent: run this again in a minute, and it will look which",
        )?;
        let count = ours.len();
        stream::iter(ours)
            .map(|(letter, mark)| async move {
                let retried = LetterMark { state: LetterState::Retried, ..mark };
                self.store.change_letter(&letter.place, mark, retried).await
            })
            .buffer_unordered(MARKS_AT_ONCE)
            .try_collect::<Vec<bool>>()
            .await?;
        outcomes.add("retried", count);
        Ok(())
    }

    /// Makes a letter ours to send, where it is to be sent. The topic was looked through for what was sent after `looked_at`.
    async fn claim(
        &self,
        letter: &Letter,
        seen: Option<LetterMark>,
        (looked_at, now): (Timestamp, Timestamp),
        sent_before: &HashSet<String>,
    ) -> Result<Claimed, StoreError> {
        let ours = LetterMark { state: LetterState::Retrying, run: self.run, at: now };
        let there = match seen {
            Some(seen) => Some(seen),
            None => self.store.mark_letter(&letter.place, ours).await?,
        };
        let Some(there) = there else { return Ok(Claimed::Ours(ours)) };
        match there.state {
            LetterState::Retried => Ok(Claimed::Sent),
            LetterState::Retrying if sent_before.contains(&letter.place) => {
                let retried = LetterMark { state: LetterState::Retried, ..there };
                self.store.change_letter(&letter.place, there, retried).await?;
                Ok(Claimed::Sent)
            }
            // One whose claim was not there when the topic was looked through is not known to be unsent either.
            LetterState::Retrying if seen.is_none() || looked_at.0 - there.at.0 < CLAIM_MS_MAX => {
                Ok(Claimed::InWork)
            }
            LetterState::Retrying | LetterState::Dropped => {
                let changed = self.store.change_letter(&letter.place, there, ours).await?;
                Ok(if changed { Claimed::Ours(ours) } else { Claimed::InWork })
            }
        }
    }
}

/// Whose a letter is.
enum Claimed {
    Ours(LetterMark),
    Sent,
    InWork,
}

async fn drop_letters(options: DropOptions) -> anyhow::Result<()> {
    options.which.check_chosen(options.every)?;
    let now = system_clock()();
    let kafka = options.at.kafka.config("backstamp-dead-letters", "")?;
    let store = ScyllaStore::connect(&options.at.scylla.config()).await?;
    let mark = LetterMark { state: LetterState::Dropped, run: Uuid::new_v4(), at: now };
    let mut letters = Letters::open(&kafka, &options.which, now).await?;
    let mut outcomes = Outcomes::default();
    loop {
        let next = letters.next().await?;
        if next.is_empty() {
            break;
        }
        let places: Vec<String> = next.into_iter().map(|letter| letter.place).collect();
        let marked: Vec<Option<LetterMark>> = stream::iter(&places)
            .map(|place| store.mark_letter(place, mark))
            .buffered(MARKS_AT_ONCE)
            .try_collect()
            .await?;
        for there in marked {
            outcomes.add(
                match there.map(|mark| mark.state) {
                    None => "dropped",
                    Some(LetterState::Dropped) => "dropped before",
                    Some(LetterState::Retried) => "retried before",
                    Some(LetterState::Retrying) => "in work",
                },
                1,
            );
        }
    }
    letters.progress.finish();
    outcomes.print(options.at.json, &[]);
    no_letter(&letters.missing())
}

const _: () = assert!(CLAIM_MS_MAX as u128 >= 2 * Duration::from_secs(30).as_millis());
