//! `backstamp forget-contact`: erases a contact from all projections, keeps it erased, and prints a receipt.
//!
//! The order of its steps is what makes it hold while `ingest` runs. The store remembers the contact; every owner is told by its
//! partition of the internal topic, and once all have committed that, no row of the contact is written any more by anybody. So the
//! rows that stand then are all that there are: they are read from the contact's timeline, and the owner of each timeline is
//! asked to take its own out. Facts of sends, waiting events and the reference follow. Each step can be done again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use event_log::{Appender, KafkaAppender, KafkaConfig, Outgoing, Scan, Stretch, Topic};
use event_store::scylla::ScyllaStore;
use event_store::{EventStore, SendWrite, WAITING_BYTES_MAX, WaitingFrom};
use ingest::forgotten::FORGOTTEN_AGE_MS_MAX;
use ingest::kafka::outgoing_order;
use ingest::place::SEND_STAMP_MAX;
use operate::views::rows_of_contact;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use timeline::event::decode_event;
use timeline::reference::{Kind, ReferenceKey};
use timeline::row::RowKey;
use timeline::send::{SEND_KEPT_LONGER_MS, SendFacts};
use timeline::{AccountId, Id, Order, Subject, TimelineId, Timestamp};
use uuid::Uuid;

use crate::caught_up::wait_until_done;
use crate::keys::parse_account;
use crate::options::{PipelineOptions, kafka_of, parse_contact};
use crate::progress::Progress;
use crate::run::{say, system_clock};

/// Messages whose sends are looked at at a time, and records of the log.
const CHUNK: usize = 1000;
/// How often rows are looked for again: the second time there are none, or somebody does not know yet.
const ROUNDS_MAX: u32 = 3;
/// What is waited for beyond the age that what others know may have.
const SLACK_MS: i64 = 2000;

/// Erases a contact from all projections: its timeline, its rows on campaigns (their totals follow), what its sends knew, its address.
/// It stays erased, whatever is published, repeated or replayed later. Prints a receipt. The log keeps its messages until their time is over.
#[derive(Args)]
pub(crate) struct Options {
    /// The contact's account.
    #[arg(long, value_parser = parse_account)]
    account: AccountId,
    /// The contact.
    #[arg(long, value_parser = parse_contact)]
    contact: Uuid,
    #[command(flatten)]
    pipeline: PipelineOptions,
    /// Says what would be erased, and erases nothing.
    #[arg(long)]
    dry_run: bool,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

type Rows = BTreeMap<TimelineId, BTreeSet<RowKey>>;

struct Forgetting<'a> {
    options: &'a Options,
    kafka: KafkaConfig,
    appender: KafkaAppender,
    store: Arc<ScyllaStore>,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let clock = system_clock();
    let store = ScyllaStore::connect(&options.pipeline.scylla.config()).await?;
    let kafka = kafka_of(store.live(), options.pipeline.kafka("backstamp-forget")?);
    let forgetting = Forgetting {
        appender: KafkaAppender::new(&kafka, &[Topic::CampaignEvents, Topic::References])?,
        store: Arc::new(store),
        kafka,
        options: &options,
    };
    if options.dry_run {
        let rows = forgetting.rows().await?;
        print(options.json, &json!({ "would_erase": counted(&rows) }));
        return Ok(());
    }
    let begun = clock();
    let (erased, (records, sends, waiting)) = forgetting.forget(&clock).await?;
    let finished = clock();
    print(
        options.json,
        &json!({
            "account": options.account.as_str(),
            "contact": options.contact.to_string(),
            "begun_at": begun.to_rfc3339(),
            "finished_at": finished.to_rfc3339(),
            "erased": counted(&erased),
            "sends_without_address": sends,
            "waiting_events_erased": waiting,
            "reference_erased": true,
            "log_records_read": records,
            "digest": digest(&erased),
            "kept": format!(
                "raw messages in {} and {} until retention is over; the id in the list of forgotten contacts",
                Topic::Events.name_with(&forgetting.kafka.topic_prefix),
                Topic::DeadLetters.name_with(&forgetting.kafka.topic_prefix)
            ),
        }),
    );
    Ok(())
}

/// Forgets a contact in a keyspace that an ingest fills by `kafka`'s group.
pub(crate) async fn forget_in(
    store: Arc<ScyllaStore>,
    kafka: &KafkaConfig,
    pipeline: &PipelineOptions,
    (account, contact): (AccountId, Uuid),
) -> anyhow::Result<()> {
    let options = Options { account, contact, pipeline: pipeline.clone(), dry_run: false, json: true };
    let forgetting = Forgetting {
        appender: KafkaAppender::new(kafka, &[Topic::CampaignEvents, Topic::References])?,
        store,
        kafka: kafka.clone(),
        options: &options,
    };
    forgetting.forget(&system_clock()).await.map(|_| ())
}

impl Forgetting<'_> {
    /// Does all of it. Returns the rows that were erased, and what came of [`erase_sends`](Self::erase_sends).
    async fn forget(&self, clock: &edge::Clock) -> anyhow::Result<(Rows, (u64, u64, u64))> {
        let begun = clock();
        self.store.forget(&self.options.account, self.options.contact, begun).await?;
        let erased = self.erase_rows().await?;
        // By now the first stages and the references know, too, and keep no address of it any more.
        let known_at = begun.plus_ms(FORGOTTEN_AGE_MS_MAX + SLACK_MS);
        let left_ms = u64::try_from(known_at.0 - clock().0).unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(left_ms)).await;
        self.erase_reference(clock).await?;
        Ok((erased, self.erase_sends(clock()).await?))
    }

    async fn rows(&self) -> anyhow::Result<Rows> {
        Ok(rows_of_contact(&*self.store, &self.options.account, self.options.contact).await?)
    }

    /// Tells every owner, then takes all rows out. Returns which there were.
    async fn erase_rows(&self) -> anyhow::Result<Rows> {
        let (account, contact) = (&self.options.account, self.options.contact);
        let forget = Order::Forget { account: account.clone(), contact }.encode();
        let orders = (0..event_log::CAMPAIGN_EVENTS_PARTITIONS).map(|partition| Outgoing {
            partition: Some(partition),
            ..Outgoing::new(Topic::CampaignEvents, None, Some(forget.clone()))
        });
        self.order(orders.collect()).await?;
        let mut erased = Rows::new();
        for _ in 0..ROUNDS_MAX {
            let rows = self.rows().await?;
            if rows.is_empty() {
                return Ok(erased);
            }
            // The contact's own last: they say which the others are, should this end in between.
            let is_campaign = |timeline: &TimelineId| matches!(timeline.subject, Subject::Campaign(_));
            for of_campaigns in [true, false] {
                let orders = rows
                    .iter()
                    .filter(|(timeline, _)| is_campaign(timeline) == of_campaigns)
                    .flat_map(|(timeline, keys)| Order::erase(timeline, contact, keys))
                    .map(|order| outgoing_order(&order));
                self.order(orders.collect()).await?;
            }
            for (timeline, keys) in rows {
                erased.entry(timeline).or_default().extend(keys);
            }
        }
        bail!("rows of the contact come back: is an ingest of an earlier version running?")
    }

    /// Sends orders, and waits until they are carried out.
    async fn order(&self, orders: Vec<Outgoing>) -> anyhow::Result<()> {
        if orders.is_empty() {
            return Ok(());
        }
        self.appender.append(orders).await.context("the owners could not be told: run this again")?;
        wait_until_done(&self.kafka, Topic::CampaignEvents).await
    }

    /// Takes name and address out of the contact's reference, and out of the topic of references once it is compacted.
    async fn erase_reference(&self, clock: &edge::Clock) -> anyhow::Result<()> {
        let id = Id::parse(&self.options.contact.to_string()).context("a UUID is an id")?;
        let key = ReferenceKey { account: self.options.account.clone(), kind: Kind::Contact, id };
        let deletion = Outgoing::new(Topic::References, Some(key.to_string().into_bytes()), None);
        self.appender
            .append(vec![deletion])
            .await
            .context("the reference could not be deleted: run this again")?;
        wait_until_done(&self.kafka, Topic::References).await?;
        Ok(self.store.erase_reference(&key, clock().0 * 1000 + 999).await?)
    }

    /// Takes the address out of what the contact's sends knew, and its events off the list of the waiting. What a send knew of contact and
    /// campaign stays until its time is over: by it, later events of the message are told to be the contact's, and left out. The
    /// messages are known to the log alone. Returns how many records were read, sends changed and events taken off.
    async fn erase_sends(&self, now: Timestamp) -> anyhow::Result<(u64, u64, u64)> {
        let kept_ms = self.options.pipeline.retention.retention_ms() + SEND_KEPT_LONGER_MS;
        let stretch = Stretch { since: Some(now.minus_ms(kept_ms)), until: None };
        let mut scan = Scan::begin(&self.kafka, Topic::Events, stretch).await?;
        let progress = Progress::new("records", scan.total());
        let mut messages = BTreeSet::<(AccountId, Id)>::new();
        loop {
            let next = scan.next(CHUNK).await?;
            if next.is_empty() {
                break;
            }
            progress.at(scan.read());
            for scanned in next {
                let value = scanned.record.value.as_deref().unwrap_or_default();
                let Ok(event) = decode_event(value, scanned.record.appended_at) else { continue };
                if event.account == self.options.account && event.contact == Some(self.options.contact) {
                    messages.extend(event.message.map(|message| (event.account, message)));
                }
            }
        }
        progress.finish();
        let (mut changed, mut removed) = (0, 0);
        let messages: Vec<(AccountId, Id)> = messages.into_iter().collect();
        for messages in messages.chunks(CHUNK) {
            let facts = self.store.read_sends(messages).await?;
            let is_ours =
                |facts: &SendFacts| facts.contact.is_none_or(|contact| contact == self.options.contact);
            let sends: Vec<SendWrite> = messages
                .iter()
                .zip(&facts)
                .filter_map(|((account, message), facts)| {
                    let facts = facts.as_ref().filter(|facts| is_ours(facts) && facts.email.is_some())?;
                    Some(SendWrite {
                        account: account.clone(),
                        message: message.clone(),
                        facts: SendFacts { email: None, ..facts.clone() },
                        stamp: SEND_STAMP_MAX,
                        expires_at: now.plus_ms(kept_ms),
                    })
                })
                .collect();
            self.store.write_sends(now, &sends).await?;
            changed += sends.len() as u64;
            let mut from: Vec<WaitingFrom> = messages.iter().cloned().map(WaitingFrom::all).collect();
            while !from.is_empty() {
                let (mut waiting, more) = self.store.read_waiting(&from, WAITING_BYTES_MAX).await?;
                waiting.retain(|waiting| {
                    decode_event(&waiting.event, waiting.appended_at)
                        .is_ok_and(|event| event.contact == Some(self.options.contact))
                });
                self.store.remove_waiting(&waiting).await?;
                removed += waiting.len() as u64;
                from = more;
            }
        }
        Ok((scan.read(), changed, removed))
    }
}

/// Rows, counted by what they stood in.
fn counted(rows: &Rows) -> Value {
    let count = |is: fn(&Subject) -> bool| -> usize {
        rows.iter().filter(|(timeline, _)| is(&timeline.subject)).map(|(_, keys)| keys.len()).sum()
    };
    let campaigns = rows.keys().filter(|timeline| matches!(timeline.subject, Subject::Campaign(_))).count();
    json!({
        "contact_rows": count(|subject| matches!(subject, Subject::Contact(_))),
        "campaign_rows": count(|subject| matches!(subject, Subject::Campaign(_))),
        "campaigns": campaigns,
    })
}

/// SHA-256 of the rows that were erased, a line each: timeline, time in milliseconds, event id, type.
fn digest(rows: &Rows) -> String {
    let mut digest = Sha256::new();
    for (timeline, keys) in rows {
        for RowKey { position, event_type } in keys {
            let line =
                format!("{} {} {} {}\n", timeline.subject, position.at.0, position.id, event_type.name());
            digest.update(line.as_bytes());
        }
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn print(json: bool, receipt: &Value) {
    if json {
        say(&receipt.to_string());
        return;
    }
    for (name, value) in receipt.as_object().into_iter().flatten() {
        say(&format!("{name}: {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
    }
}
