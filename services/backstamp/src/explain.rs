//! `backstamp explain`: what became of one event, from the log to the page that it shows on.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use clap::Args;
use event_log::{KafkaConfig, Scan, Scanned, Stretch, Topic};
use event_store::EventStore;
use event_store::scylla::ScyllaStore;
use operate::fate::{Fate, Judge, Shown};
use operate::places;
use operate::shows::shows;
use serde::Deserialize;
use serde_json::{Value, json};
use timeline::event::decode_event;
use timeline::row::PlacedRow;
use timeline::{AccountId, Event, Id, Timestamp};
use uuid::Uuid;

use crate::keys::parse_account;
use crate::options::{FilterOptions, Instant, PipelineOptions, kafka_of, parse_id, parse_instant};
use crate::progress::Progress;
use crate::run::{say, system_clock};

/// Records that are looked at at a time.
const CHUNK_RECORDS: usize = 4096;

/// Says what became of an event: where it came in, what it was joined to, whether it was filtered, expired, refused, or where it shows. Reads the
/// log of the given time, from its beginning if none is given.
#[derive(Args)]
pub(crate) struct Options {
    /// The event's id, as its sender wrote it or as the contact timeline shows it.
    #[arg(value_parser = parse_id)]
    event_id: Id,
    /// Its account.
    #[arg(long, value_parser = parse_account)]
    account: AccountId,
    /// Published since: 2026-04-17T14:23:05Z, or a span ago such as 24h.
    #[arg(long, value_parser = parse_instant)]
    since: Option<Instant>,
    /// Published until.
    #[arg(long, value_parser = parse_instant)]
    until: Option<Instant>,
    #[command(flatten)]
    pipeline: PipelineOptions,
    #[command(flatten)]
    filter: FilterOptions,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let now = system_clock()();
    let store = ScyllaStore::connect(&options.pipeline.scylla.config()).await?;
    let kafka = kafka_of(store.live(), options.pipeline.kafka("backstamp-explain")?);
    let stretch = Stretch {
        since: options.since.map(|since| since.at(now)),
        until: options.until.map(|until| until.at(now)),
    };
    let mut found = find(&kafka, stretch, &options).await?;
    if found.is_empty() {
        bail!(
            "no message of account {} with the id {} is in {} in that time",
            options.account,
            options.event_id,
            Topic::Events.name()
        );
    }
    found.sort_by_key(|scanned| scanned.record.appended_at);
    let messages: Vec<(&[u8], Timestamp)> = found
        .iter()
        .map(|scanned| (scanned.record.value.as_deref().unwrap_or_default(), scanned.record.appended_at))
        .collect();
    let judge = Judge {
        store: &store,
        filter: &options.filter.list_management_urls,
        retention_ms: options.pipeline.retention.retention_ms(),
        forgotten: &store.list_forgotten().await?.into_iter().collect(),
    };
    let fates = judge.judge(now, &messages).await?;
    let placed = event_log::committed(&kafka, Topic::Events).await?;
    let letters = letters(&kafka, Stretch { until: None, ..stretch }).await?;
    let marks = store.letter_marks().await?;
    let mut told = Vec::new();
    for (scanned, fate) in found.iter().zip(&fates) {
        let record = &scanned.record;
        let place = format!("{}/{}/{}", Topic::Events.name(), record.partition, record.offset);
        let is_done = placed.get(&record.partition).is_some_and(|next| record.offset < *next);
        let mut of_message = json!({ "message": place, "published_at": record.appended_at.to_rfc3339() });
        if let Some(letter) = scanned.header("backstamp.retried") {
            of_message["retried_letter"] = letter.into();
        }
        if is_done {
            tell(&store, fate, now, options.pipeline.retention.retention_ms(), &mut of_message).await?;
        } else {
            of_message["outcome"] = "not done yet".into();
            of_message["why"] = format!("group {} has not come to it", kafka.group).into();
        }
        if matches!(fate, Fate::Refused(_)) && is_done {
            of_message["dead_letter"] = letters.get(&place).cloned().into();
            if let Some(mark) = marks.get(&place) {
                of_message["letter_state"] = mark.state.name().into();
                of_message["letter_state_since"] = mark.at.to_rfc3339().into();
            }
        }
        told.push(of_message);
    }
    let event = options.event_id.as_str();
    if options.json {
        say(&json!({ "account": options.account.as_str(), "event": event, "messages": told }).to_string());
    } else {
        say(&format!("event {event} of account {}: {} messages", options.account, told.len()));
        told.iter().for_each(print);
    }
    Ok(())
}

/// The event's messages.
async fn find(kafka: &KafkaConfig, stretch: Stretch, options: &Options) -> anyhow::Result<Vec<Scanned>> {
    let mut scan = Scan::begin(kafka, Topic::Events, stretch).await?;
    let progress = Progress::new("records", scan.total());
    let mut found = Vec::new();
    loop {
        let next = scan.next(CHUNK_RECORDS).await?;
        if next.is_empty() {
            break;
        }
        progress.at(scan.read());
        found.extend(next.into_iter().filter(|scanned| is_it(scanned, options)));
    }
    progress.finish();
    Ok(found)
}

fn is_it(scanned: &Scanned, options: &Options) -> bool {
    /// A message that may be anything else than an event.
    #[derive(Deserialize)]
    struct Named {
        id: Option<String>,
        account_id: Option<String>,
    }
    let value = scanned.record.value.as_deref().unwrap_or_default();
    let (account, id) = match decode_event(value, scanned.record.appended_at) {
        Ok(Event { account, id, .. }) => (account, id),
        Err(_) => {
            let Ok(Named { id: Some(id), account_id: Some(account) }) = serde_json::from_slice(value) else {
                return false;
            };
            let (Some(account), Some(id)) = (AccountId::parse(&account), Id::parse(&id)) else {
                return false;
            };
            (account, id)
        }
    };
    // The contact timeline shows ids that are no UUIDs as such.
    let as_shown = || Uuid::new_v5(&Uuid::NAMESPACE_OID, id.as_str().as_bytes()).to_string();
    account == options.account
        && (id == options.event_id
            || (timeline::id::is_uuid(options.event_id.as_str()) && as_shown() == options.event_id.as_str()))
}

/// Where the dead letters of events lie, by the places of their messages.
async fn letters(kafka: &KafkaConfig, stretch: Stretch) -> anyhow::Result<BTreeMap<String, String>> {
    let mut scan = Scan::begin(kafka, Topic::DeadLetters, stretch).await?;
    let mut letters = BTreeMap::new();
    loop {
        let next = scan.next(CHUNK_RECORDS).await?;
        if next.is_empty() {
            return Ok(letters);
        }
        for letter in next {
            let header = |name| letter.header(name).unwrap_or_default();
            let place = format!(
                "{}/{}/{}",
                header("backstamp.topic"),
                header("backstamp.partition"),
                header("backstamp.offset")
            );
            let lies =
                format!("{}/{}/{}", Topic::DeadLetters.name(), letter.record.partition, letter.record.offset);
            letters.entry(place).or_insert(lies);
        }
    }
}

/// Adds what became of a message that was done.
async fn tell(
    store: &ScyllaStore,
    fate: &Fate,
    now: Timestamp,
    retention_ms: i64,
    to: &mut Value,
) -> anyhow::Result<()> {
    let event = match fate {
        Fate::Refused(_) => None,
        Fate::Filtered(event) | Fate::Expired(event) | Fate::Gone(event) | Fate::Forgotten(event) => {
            Some(&**event)
        }
        Fate::Shown(shown) => Some(&shown.event),
    };
    if let Some(event) = event {
        to["type"] = event.event_type.name().into();
        to["occurred_at"] = event.at.to_rfc3339().into();
    }
    let (outcome, why) = match fate {
        Fate::Refused(refusal) => ("dead-lettered", refusal.to_string()),
        Fate::Filtered(_) => ("filtered", "a click on a list-management link is no engagement".to_owned()),
        Fate::Expired(_) => ("expired", "it was past retention when it came".to_owned()),
        Fate::Gone(_) => ("expired", "it has passed retention since it came".to_owned()),
        Fate::Forgotten(_) => ("forgotten", "its contact was forgotten".to_owned()),
        Fate::Shown(shown) => {
            to["shows"] = rows(store, shown, now, retention_ms).await?;
            if let Some(message) = &shown.needs {
                to["message_id"] = message.as_str().into();
            }
            match (&shown.needs, &shown.facts) {
                (Some(message), Some(facts)) => {
                    to["joined"] = json!({
                        "contact": facts.contact,
                        "has_email": facts.email.is_some(),
                        "campaign": facts.campaign.as_ref().map(Id::as_str),
                        "automation": facts.automation.as_ref().map(Id::as_str),
                        "list": facts.list.as_ref().map(Id::as_str),
                        "step": facts.step.as_ref().map(Id::as_str),
                    });
                    ("projected", format!("joined to the send of message {message}"))
                }
                (Some(message), None) if shown.waits => {
                    ("waiting", format!("the send of message {message} has not come"))
                }
                (Some(message), None) => (
                    "projected",
                    format!("nothing is known of a send of message {message}, and it does not wait"),
                ),
                (None, _) if shown.rows.is_empty() => {
                    ("projected nowhere", "no contact and no campaign could show it".to_owned())
                }
                (None, _) => ("projected", "it needs nothing of a send".to_owned()),
            }
        }
    };
    to["outcome"] = outcome.into();
    to["why"] = why.into();
    Ok(())
}

/// The rows that should stand, and where each shows.
async fn rows(
    store: &ScyllaStore,
    shown: &Shown,
    now: Timestamp,
    retention_ms: i64,
) -> anyhow::Result<Value> {
    let mut told = Vec::new();
    for PlacedRow { timeline, key, .. } in &shown.rows {
        let wanted = BTreeMap::from([(timeline.clone(), BTreeSet::from([key.position.clone()]))]);
        let mut row = json!({ "timeline": timeline.subject.to_string() });
        if !places::missing(store, wanted).await?.is_empty() {
            row["state"] = "missing: `backstamp reconcile` tells more".into();
        } else if let Some(shows) = shows(store, timeline, key, now, retention_ms).await? {
            row["state"] = "shown".into();
            row["path"] = shows.path.into();
            row["place_on_page"] = shows.place.into();
            row["newer"] = shows.newer.into();
        } else {
            row["state"] = "kept, and not of a type that is shown here".into();
        }
        told.push(row);
    }
    Ok(told.into())
}

fn print(message: &Value) {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    say(&format!("{}  published {}", text(&message["message"]), text(&message["published_at"])));
    for (name, value) in message.as_object().into_iter().flatten() {
        match name.as_str() {
            "message" | "published_at" => {}
            "shows" => {
                for row in value.as_array().into_iter().flatten() {
                    let place = match row["path"].as_str() {
                        Some(path) => {
                            format!(
                                "{path} (row {} of the page, {} newer)",
                                row["place_on_page"], row["newer"]
                            )
                        }
                        None => text(&row["state"]),
                    };
                    say(&format!("  {}: {place}", text(&row["timeline"])));
                }
            }
            _ => say(&format!("  {name}: {}", text(value))),
        }
    }
}
