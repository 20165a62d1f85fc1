//! Timelines and their rows.
//!
//! A timeline is one campaign's or one contact's history. An event is projected into at most two rows, one in each.
//! A row stands at a [`Position`] — when it happened, then the event's id as text — and newest first is descending
//! position. Rows of every type that a timeline could show are kept; which of them show is the endpoint's affair.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use smol_str::SmolStr;
use uuid::Uuid;

use crate::codec::{Damaged, Reader, Writer};
use crate::event::{Event, EventType, Text, TypeSet};
use crate::id::{AccountId, Id};
use crate::time::Timestamp;

/// One campaign's or one contact's history.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineId {
    /// Whose.
    pub account: AccountId,
    /// Of what.
    pub subject: Subject,
}

/// What a timeline is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A campaign.
    Campaign(Id),
    /// A contact.
    Contact(Uuid),
    /// A contact's history as far as it belongs to one campaign: kept beside the contact's own where that is long, by the same
    /// owner, so that a campaign's stream filtered by contact has a total and pages like any other.
    ContactCampaign(Uuid, Id),
}

impl fmt::Display for Subject {
    /// `campaign:{id}`, `contact:{uuid}` or `contact:{uuid}/campaign:{id}`: the stored form. No id has a slash in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Campaign(id) => write!(f, "campaign:{id}"),
            Subject::Contact(uuid) => write!(f, "contact:{uuid}"),
            Subject::ContactCampaign(uuid, id) => write!(f, "contact:{uuid}/campaign:{id}"),
        }
    }
}

impl Subject {
    /// Reads the stored form.
    pub fn parse(stored: &str) -> Option<Subject> {
        if let Some(campaign) = stored.strip_prefix("campaign:") {
            return Id::parse(campaign).map(Subject::Campaign);
        }
        let (contact, campaign) = match stored.strip_prefix("contact:")?.split_once('/') {
            Some((contact, campaign)) => (contact, Some(Id::parse(campaign.strip_prefix("campaign:")?)?)),
            None => (stored.strip_prefix("contact:")?, None),
        };
        let contact = crate::id::parse_uuid(contact)?;
        Some(match campaign {
            Some(campaign) => Subject::ContactCampaign(contact, campaign),
            None => Subject::Contact(contact),
        })
    }
}

impl TimelineId {
    /// The timeline of a campaign.
    pub fn campaign(account: &AccountId, campaign: &Id) -> TimelineId {
        TimelineId { account: account.clone(), subject: Subject::Campaign(campaign.clone()) }
    }

    /// The timeline of a contact.
    pub fn contact(account: &AccountId, contact: Uuid) -> TimelineId {
        TimelineId { account: account.clone(), subject: Subject::Contact(contact) }
    }

    /// The timeline of a contact's events of one campaign.
    pub fn contact_campaign(account: &AccountId, contact: Uuid, campaign: &Id) -> TimelineId {
        let subject = Subject::ContactCampaign(contact, campaign.clone());
        TimelineId { account: account.clone(), subject }
    }

    /// Which of `count` partitions of the internal topic the timeline belongs to: CRC-32 of account, NUL and subject.
    /// Part of the stored format: a timeline must not move.
    pub fn partition(&self, count: u32) -> u32 {
        let mut hash = crc32fast::Hasher::new();
        hash.update(self.account.as_str().as_bytes());
        hash.update(&[0]);
        match &self.subject {
            Subject::Campaign(id) => {
                hash.update(b"campaign:");
                hash.update(id.as_str().as_bytes());
            }
            // A contact's events of one campaign are owned with the contact.
            Subject::Contact(uuid) | Subject::ContactCampaign(uuid, _) => {
                hash.update(b"contact:");
                hash.update(uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes());
            }
        }
        hash.finalize() % count
    }
}

/// Where in a timeline: an instant, then an event id compared as text. A bound need not be the position of any row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// When it happened.
    pub at: Timestamp,
    /// The event's id, or the beginning of one in a bound.
    pub id: SmolStr,
}

impl Position {
    /// Before every row.
    pub fn min() -> Position {
        Position::at_start_of(Timestamp(i64::MIN))
    }

    /// After every row.
    pub fn max() -> Position {
        Position::at_start_of(Timestamp(i64::MAX))
    }

    /// Before every row of the millisecond `at`.
    pub fn at_start_of(at: Timestamp) -> Position {
        Position { at, id: "".into() }
    }

    pub(crate) fn encode(&self, out: &mut Writer) {
        out.signed(self.at.0);
        out.bytes(self.id.as_bytes());
    }

    pub(crate) fn decode(bytes: &mut Reader<'_>) -> Result<Position, Damaged> {
        Ok(Position { at: Timestamp(bytes.signed()?), id: bytes.text()?.into() })
    }
}

/// A stretch of a timeline: `from` is in it, `until` is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first position that may be in it.
    pub from: Position,
    /// The first position after it.
    pub until: Position,
}

impl Span {
    /// A whole timeline.
    pub fn all() -> Span {
        Span { from: Position::min(), until: Position::max() }
    }

    /// The milliseconds from `first` to `last`, both inclusive.
    pub fn of_times(first: Timestamp, last: Timestamp) -> Span {
        Span { from: Position::at_start_of(first), until: Position::at_start_of(last.plus_ms(1)) }
    }

    /// One position alone, of an event. Every letter of an id comes behind `!`.
    pub fn only(position: &Position) -> Span {
        let until = Position { at: position.at, id: format!("{}!", position.id).into() };
        Span { from: position.clone(), until }
    }

    /// Whether no position is in it.
    pub fn is_empty(&self) -> bool {
        self.from >= self.until
    }

    /// Whether `position` is in it.
    pub fn contains(&self, position: &Position) -> bool {
        self.from <= *position && *position < self.until
    }

    /// Whether all of `other` is in it.
    pub fn covers(&self, other: &Span) -> bool {
        self.from <= other.from && other.until <= self.until
    }

    /// What both have.
    #[must_use]
    pub fn and(&self, other: &Span) -> Span {
        Span {
            from: self.from.clone().max(other.from.clone()),
            until: self.until.clone().min(other.until.clone()),
        }
    }
}

/// Where a row stands and what it is: all that counting needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    /// Where.
    pub position: Position,
    /// What happened.
    pub event_type: EventType,
}

/// A row as it is read.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Where it stands and what it is.
    pub key: RowKey,
    /// What it shows.
    pub body: RowBody,
}

/// What a row shows. A campaign's row has no campaign of its own, a contact's no contact.
#[derive(Clone, Debug, PartialEq, Default)]
#[expect(missing_docs, reason = "named as the wire format names them")]
pub struct RowBody {
    /// Of two rows of one event the one with the greater rank is right: its [`write_stamp`] without the event's time.
    pub rank: u16,
    pub contact: Option<Uuid>,
    pub email: Option<Box<str>>,
    pub campaign: Option<Id>,
    pub automation: Option<Id>,
    pub list: Option<Id>,
    pub step: Option<Id>,
    /// The campaign stream's `metadata`: the text of a JSON object; absent where it is empty.
    pub metadata: Option<Box<str>>,
    /// The contact timeline's `detail`: the text of a JSON object; absent where it is null.
    pub detail: Option<Box<str>>,
}

const BODY_VERSION: u8 = 1;

impl RowBody {
    /// The stored form: the version, the rank, a bit for each field that is there, the fields.
    pub fn encode(&self) -> Vec<u8> {
        encode_body(self.rank, self.contact, self.texts())
    }

    /// The rank in a stored form; 0 where that is damaged.
    pub fn rank_of(stored: &[u8]) -> u16 {
        Reader::new(stored, BODY_VERSION, "row").and_then(|mut bytes| bytes.small()).unwrap_or(0)
    }

    /// The contact in a stored form; none where it has none or is damaged.
    pub fn contact_of(stored: &[u8]) -> Option<Uuid> {
        let mut bytes = Reader::new(stored, BODY_VERSION, "row").ok()?;
        let _rank: u16 = bytes.small().ok()?;
        let present = bytes.byte().ok()?;
        if present & 1 == 0 { None } else { Uuid::from_slice(bytes.raw(16).ok()?).ok() }
    }

    /// How early a stored row's event came to the log, the greater the earlier: of two rows of one event, under two types, the greater stands.
    pub fn earliness_of(stored: &[u8]) -> u16 {
        RowBody::rank_of(stored) % COMPLETE
    }

    /// Reads the stored form.
    pub fn decode(stored: &[u8]) -> Result<RowBody, Damaged> {
        let mut bytes = Reader::new(stored, BODY_VERSION, "row")?;
        let rank = bytes.small()?;
        let present = bytes.byte()?;
        let contact = match present & 1 {
            0 => None,
            _ => Some(Uuid::from_slice(bytes.raw(16)?).map_err(|_| bytes.damaged())?),
        };
        let mut text = |bit: u8| if present & (1 << bit) == 0 { Ok(None) } else { bytes.text().map(Some) };
        let id =
            |text: Option<&str>| text.map(|text| Id::parse(text).ok_or(Damaged { what: "row" })).transpose();
        Ok(RowBody {
            rank,
            contact,
            email: text(1)?.map(Into::into),
            campaign: id(text(2)?)?,
            automation: id(text(3)?)?,
            list: id(text(4)?)?,
            step: id(text(5)?)?,
            metadata: text(6)?.map(Into::into),
            detail: text(7)?.map(Into::into),
        })
    }

    fn texts(&self) -> [Option<&str>; 7] {
        [
            self.email.as_deref(),
            self.campaign.as_ref().map(Id::as_str),
            self.automation.as_ref().map(Id::as_str),
            self.list.as_ref().map(Id::as_str),
            self.step.as_ref().map(Id::as_str),
            self.metadata.as_deref(),
            self.detail.as_deref(),
        ]
    }
}

/// The stored form of a body whose text fields are `texts`, in the order of [`RowBody`].
fn encode_body(rank: u16, contact: Option<Uuid>, texts: [Option<&str>; 7]) -> Vec<u8> {
    let bytes: usize = texts.iter().flatten().map(|text| text.len() + 2).sum();
    let mut out = Writer::with_capacity(BODY_VERSION, bytes + 24);
    out.number(u64::from(rank));
    let present = texts
        .iter()
        .enumerate()
        .fold(u8::from(contact.is_some()), |bits, (at, text)| bits | u8::from(text.is_some()) << (at + 1));
    out.byte(present);
    if let Some(contact) = contact {
        out.raw(contact.as_bytes());
    }
    for text in texts.into_iter().flatten() {
        out.bytes(text.as_bytes());
    }
    out.finish()
}

/// A row on its way to its timeline: what *place* publishes and *own* writes.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacedRow {
    /// Whose history it belongs to.
    pub timeline: TimelineId,
    /// Where it stands and what it is.
    pub key: RowKey,
    /// The write timestamp, in microseconds: see [`write_stamp`].
    pub stamp: i64,
    /// Whether the row stood incomplete before and its `send` has come since: it is written even if it was seen.
    pub completes: bool,
    /// Whether the event is counted by this row: one of its rows, where it is first placed.
    pub counts: bool,
    /// The stored form of its [`RowBody`].
    pub body: Vec<u8>,
}

/// What a row's rank gains when its `send` is known.
const COMPLETE: u16 = 500;

/// The write timestamp of a row, in microseconds: the event's time, so that time-window compaction drops whole tables,
/// and in the microseconds below it an order among the writes of one event. A complete row (its `send` known) beats an
/// incomplete one; otherwise the earlier record beats the later (on a logarithmic scale, which is what 500 steps allow),
/// so that a repeat with altered content does not change what is there.
pub fn write_stamp(at: Timestamp, appended_at: Timestamp, complete: bool) -> i64 {
    let age_ms = (appended_at.0 - at.0).max(0);
    // 14 steps for each doubling of the age: 2^35 ms is more than a year.
    let octave = 63 - (age_ms + 1).leading_zeros();
    let within = ((age_ms + 1) << 4 >> octave) - 16;
    let earliness = 499 - (i64::from(octave) * 14 + within * 14 / 16).min(499);
    at.0 * 1000 + earliness + if complete { i64::from(COMPLETE) } else { 0 }
}

/// The write timestamp of a row that is stored already.
pub fn stored_stamp(at: Timestamp, rank: u16) -> i64 {
    at.0 * 1000 + i64::from(rank)
}

/// How an event comes to its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placing {
    /// With all that it will ever have.
    Complete,
    /// With all that it will ever have, while another copy of it may have been placed incomplete.
    CompleteAfterWaiting,
    /// While its `send` has not come.
    Incomplete,
    /// Once its `send` has come; the rows of [`Placing::Incomplete`], if it had any, stand already.
    Completed,
}

/// The rows of `event`: one in its contact's timeline and one in its campaign's, where it has them and they could ever show it.
pub fn project(event: &Event, appended_at: Timestamp, placing: Placing) -> Vec<PlacedRow> {
    let stamp = write_stamp(event.at, appended_at, placing != Placing::Incomplete);
    let rank = (stamp - event.at.0 * 1000) as u16;
    let campaign = event.campaign.as_ref().filter(|_| TypeSet::CAMPAIGN.contains(event.event_type));
    // The contact's row repeats what the campaign's shows: it is read by the campaign's `contact_id` filter.
    let metadata = campaign.and_then(|_| shown_metadata(event));
    let metadata = metadata.as_deref();
    let email = campaign.and(event.email.as_deref());
    let step = campaign.and(event.step.as_ref()).map(Id::as_str);
    let mut rows = Vec::with_capacity(2);
    let mut place = |timeline, body| {
        rows.push(PlacedRow {
            timeline,
            key: RowKey {
                position: Position { at: event.at, id: event.id.as_str().into() },
                event_type: event.event_type,
            },
            stamp,
            completes: matches!(placing, Placing::Completed | Placing::CompleteAfterWaiting),
            counts: rows.is_empty() && placing != Placing::Completed,
            body,
        });
    };
    if let Some(contact) = event.contact {
        let carries_list = matches!(event.event_type, EventType::Subscribed | EventType::Unsubscribed);
        let list = event.list.as_ref().filter(|_| carries_list).map(Id::as_str);
        let campaign = event.campaign.as_ref().map(Id::as_str);
        let automation = event.automation.as_ref().map(Id::as_str);
        let detail = detail(event);
        let texts = [email, campaign, automation, list, step, metadata, detail.as_deref()];
        place(TimelineId::contact(&event.account, contact), encode_body(rank, None, texts));
    }
    if let Some(campaign) = campaign {
        let texts = [email, None, None, None, step, metadata, None];
        place(TimelineId::campaign(&event.account, campaign), encode_body(rank, event.contact, texts));
    }
    rows
}

/// The campaign stream's `metadata`: what the event's held, and the clicked link, the bounce's type and reason.
fn shown_metadata(event: &Event) -> Option<Cow<'_, str>> {
    let held = event.metadata.as_deref();
    match event.event_type {
        EventType::Clicked if let Some(url) = &event.url => Some(with_own(&[("url", url)], held).into()),
        EventType::Bounced => {
            let kind = ("bounce_type", bounce_type(event));
            Some(match event.bounce.as_ref().and_then(|bounce| bounce.reason.as_deref()) {
                Some(reason) => with_own(&[kind, ("reason", reason)], held).into(),
                None => with_own(&[kind], held).into(),
            })
        }
        _ => held.filter(|held| *held != "{}").map(Cow::Borrowed),
    }
}

/// The contact timeline's `detail`.
fn detail(event: &Event) -> Option<Cow<'_, str>> {
    match event.event_type {
        EventType::Clicked => Some(match &event.url {
            Some(url) => with_own(&[("url", url)], None).into(),
            None => r#"{"url":null}"#.into(),
        }),
        EventType::Bounced => Some(with_own(&[("type", bounce_type(event))], None).into()),
        EventType::Purchased => {
            let purchase = event.purchase.as_ref()?;
            serde_json::to_string(purchase).ok().map(Cow::Owned)
        }
        _ => None,
    }
}

fn bounce_type(event: &Event) -> &'static str {
    if event.bounce.as_ref().is_some_and(|bounce| bounce.hard) { "hard" } else { "soft" }
}

/// A JSON object of `own` fields and, behind them, those of the object `held` that have other names, values as they were written.
fn with_own(own: &[(&str, &str)], held: Option<&str>) -> String {
    let bytes: usize = own.iter().map(|(name, value)| name.len() + value.len() + 6).sum();
    let mut json = String::with_capacity(bytes + held.map_or(2, str::len));
    json.push('{');
    for (name, value) in own {
        push_name(name, &mut json);
        push_text(value, &mut json);
    }
    if let Some(held) = held {
        // It was read as JSON before.
        let _ = serde_json::Deserializer::from_str(held).deserialize_map(Held { own, json: &mut json });
    }
    json.push('}');
    json
}

/// Copies an object's fields that are not among our own.
struct Held<'a> {
    own: &'a [(&'a str, &'a str)],
    json: &'a mut String,
}

impl<'de> Visitor<'de> for Held<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while let Some((Text(name), value)) = fields.next_entry::<Text<'de>, &'de RawValue>()? {
            if self.own.iter().all(|(taken, _)| *taken != name) {
                push_name(&name, self.json);
                self.json.push_str(value.get());
            }
        }
        Ok(())
    }
}

fn push_name(name: &str, json: &mut String) {
    if json.len() > 1 {
        json.push(',');
    }
    push_text(name, json);
    json.push(':');
}

fn push_text(text: &str, json: &mut String) {
    if text.bytes().any(|byte| byte < b' ' || byte == b'"' || byte == b'\\') {
        json.push_str(&serde_json::Value::from(text).to_string());
    } else {
        json.push('"');
        json.push_str(text);
        json.push('"');
    }
}

const PLACED_VERSION: u8 = 1;

/// One message of the internal topic: rows whose timelines share a partition. `appended_at` is the broker's timestamp of the oldest
/// record that brought them.
pub fn encode_placed(rows: &[PlacedRow], appended_at: Timestamp) -> Vec<u8> {
    let mut out = Writer::new(PLACED_VERSION);
    out.signed(appended_at.0);
    for row in rows {
        out.bytes(row.timeline.account.as_str().as_bytes());
        match &row.timeline.subject {
            Subject::Campaign(id) => {
                out.byte(0);
                out.bytes(id.as_str().as_bytes());
            }
            Subject::Contact(uuid) => {
                out.byte(1);
                out.raw(uuid.as_bytes());
            }
            Subject::ContactCampaign(uuid, id) => {
                out.byte(2);
                out.raw(uuid.as_bytes());
                out.bytes(id.as_str().as_bytes());
            }
        }
        row.key.position.encode(&mut out);
        out.byte(row.key.event_type as u8);
        out.signed(row.stamp);
        out.byte(u8::from(row.completes) | u8::from(row.counts) << 1);
        out.bytes(&row.body);
    }
    out.finish()
}

/// Reads what [`encode_placed`] wrote.
pub fn decode_placed(message: &[u8]) -> Result<(Vec<PlacedRow>, Timestamp), Damaged> {
    let mut bytes = Reader::new(message, PLACED_VERSION, "placed rows")?;
    let appended_at = Timestamp(bytes.signed()?);
    let mut rows = Vec::new();
    while !bytes.is_at_end() {
        let account = AccountId::parse(bytes.text()?).ok_or_else(|| bytes.damaged())?;
        let subject = match bytes.byte()? {
            0 => Subject::Campaign(Id::parse(bytes.text()?).ok_or_else(|| bytes.damaged())?),
            1 => Subject::Contact(Uuid::from_slice(bytes.raw(16)?).map_err(|_| bytes.damaged())?),
            2 => Subject::ContactCampaign(
                Uuid::from_slice(bytes.raw(16)?).map_err(|_| bytes.damaged())?,
                Id::parse(bytes.text()?).ok_or_else(|| bytes.damaged())?,
            ),
            _ => return Err(bytes.damaged()),
        };
        let key = RowKey {
            position: Position::decode(&mut bytes)?,
            event_type: EventType::from_number(bytes.byte()?).ok_or_else(|| bytes.damaged())?,
        };
        let (stamp, flags) = (bytes.signed()?, bytes.byte()?);
        rows.push(PlacedRow {
            timeline: TimelineId { account, subject },
            key,
            stamp,
            completes: flags & 1 != 0,
            counts: flags & 2 != 0,
            body: bytes.bytes()?.to_vec(),
        });
    }
    Ok((rows, appended_at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use crate::event::decode_event;
    use crate::send::{SendFacts, join};
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp(1_790_000_000_000);

    fn event(fields: &str) -> Event {
        let json = format!(
            r#"{{"id":"e1","account_id":"a","occurred_at":"2026-04-17T14:23:05Z","contact_id":"123e4567-e89b-12d3-a456-426614174000","campaign_id":"c",{fields}}}"#
        );
        decode_event(json.as_bytes(), NOW).expect("valid")
    }

    fn bodies(event: &Event) -> Vec<RowBody> {
        project(event, NOW, Placing::Complete)
            .iter()
            .map(|row| RowBody::decode(&row.body).expect("sound"))
            .collect()
    }

    #[test]
    fn a_click_shows_its_link_in_both_and_keeps_its_metadata_as_it_came() {
        let rows = bodies(&event(
            r#""type":"click","url":"https://a.example/\"x","metadata":{"n":1e400,"url":"other","b":{"c":[ ]}}"#,
        ));
        assert_eq!(
            rows[1].metadata.as_deref(),
            Some(r#"{"url":"https://a.example/\"x","n":1e400,"b":{"c":[ ]}}"#)
        );
        assert_eq!(rows[0].detail.as_deref(), Some(r#"{"url":"https://a.example/\"x"}"#));
    }

    #[test]
    fn a_subject_survives_its_stored_form() {
        let (campaign, contact) = (Id::parse("a:b").expect("an id"), Uuid::from_u128(7));
        for subject in [
            Subject::Campaign(campaign.clone()),
            Subject::Contact(contact),
            Subject::ContactCampaign(contact, campaign),
        ] {
            assert_eq!(Subject::parse(&subject.to_string()), Some(subject));
        }
        for bad in ["", "campaign:", "contact:x", "list:a", "contact:00000000-0000-0000-0000-000000000007/a"]
        {
            assert_eq!(Subject::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_stored_row_tells_its_contact() {
        let rows = project(&event(r#""type":"open","email":"a@b.example""#), NOW, Placing::Complete);
        let contact = Uuid::parse_str("123e4567-e89b-12d3-a456-426614174000").ok();
        assert_eq!((RowBody::contact_of(&rows[0].body), RowBody::contact_of(&rows[1].body)), (None, contact));
        assert_eq!(RowBody::contact_of(&[]), None);
    }

    #[test]
    fn a_bounce_without_a_type_is_soft() {
        let rows = bodies(&event(r#""type":"bounce""#));
        assert_eq!(rows[1].metadata.as_deref(), Some(r#"{"bounce_type":"soft"}"#));
        assert_eq!(rows[0].detail.as_deref(), Some(r#"{"type":"soft"}"#));
    }

    #[test]
    fn a_purchase_shows_no_amount_and_not_on_the_campaign() {
        let rows = bodies(&event(
            r#""type":"purchase","purchase":{"order_uuid":"o","product_uuid":"p","product_name":"Pro","is_subscription":true,"amount":5}"#,
        ));
        assert_eq!(rows.len(), 1);
        let detail = r#"{"order_uuid":"o","product_uuid":"p","product_name":"Pro","variant_name":null,"is_subscription":true}"#;
        assert_eq!(rows[0].detail.as_deref(), Some(detail));
    }

    #[test]
    fn placed_rows_survive_the_topic() {
        let rows = project(
            &event(r#""type":"unsubscribe","list_id":"l","email":"a@b.example""#),
            NOW,
            Placing::Completed,
        );
        assert_eq!(decode_placed(&encode_placed(&rows, NOW)), Ok((rows.clone(), NOW)));
        assert!(decode_placed(&encode_placed(&rows, NOW)[..40]).is_err());
    }

    /// What of a message's fields somebody says: a bit for each of contact, email, campaign, automation, list, step.
    fn said(bits: u8, by: &str) -> String {
        let fields = [
            ("contact_id", "123e4567-e89b-12d3-a456-426614174000".to_owned()),
            ("email", format!("{by}@example.com")),
            ("campaign_id", format!("c_{by}")),
            ("automation_id", format!("a_{by}")),
            ("list_id", format!("l_{by}")),
            ("step_id", format!("s_{by}")),
        ];
        let said = fields.iter().enumerate().filter(|(at, _)| bits & 1 << at != 0);
        said.map(|(_, (name, value))| format!(r#""{name}":"{value}","#)).collect()
    }

    /// The rows that stand once `writes` were done in their order: of one place the one of the greatest stamp.
    fn fold<'a>(
        writes: impl Iterator<Item = &'a PlacedRow>,
    ) -> BTreeMap<(TimelineId, RowKey), &'a PlacedRow> {
        let mut stand = BTreeMap::<_, &PlacedRow>::new();
        for row in writes {
            let place = stand.entry((row.timeline.clone(), row.key.clone())).or_insert(row);
            if row.stamp > place.stamp {
                *place = row;
            }
        }
        stand
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        /// An event before its `send`, with it or after it, and repeated in between: the rows that stand in the end are the same.
        #[test]
        fn an_event_folds_to_the_same_rows_in_any_order(
            own in 0_u8..64, sent in 0_u8..64, of in 0_usize..15, ages in proptest::collection::vec(0_i64..1 << 30, 1..5), turn in 0_usize..5,
        ) {
            let name = EventType::ALL[of].name();
            let more = r#""url":"https://a.example/","purchase":{"order_uuid":"o","product_uuid":"p","product_name":"Pro","is_subscription":true}"#;
            let json = |fields: String, kind: &str| format!(
                r#"{{"id":"e1","account_id":"a","occurred_at":"2026-04-17T14:23:05Z","message_id":"m",{fields}"type":"{kind}",{more}}}"#
            );
            let event = decode_event(json(said(own, "own"), name).as_bytes(), NOW).expect("valid");
            let send = decode_event(json(said(sent, "sent"), "send").as_bytes(), NOW).expect("valid");
            let joined = join(&event, &SendFacts::of(&send));
            prop_assert_eq!(&join(&joined, &SendFacts::of(&send)), &joined);
            let first = ages.iter().min().expect("one");
            let at = |age: i64| event.at.plus_ms(age);
            let mut writes: Vec<PlacedRow> = Vec::new();
            for age in &ages {
                writes.extend(project(&event, at(*age), Placing::Incomplete));
                writes.extend(project(&joined, at(*age), Placing::Completed));
            }
            let turn = turn % writes.len().max(1);
            writes.rotate_left(turn);
            let complete = project(&joined, at(*first), Placing::Complete);
            for stands in [fold(writes.iter()), fold(writes.iter().rev())] {
                prop_assert_eq!(stands.len(), complete.len());
                for row in &complete {
                    let stood = stands[&(row.timeline.clone(), row.key.clone())];
                    prop_assert_eq!((&stood.body, stood.stamp), (&row.body, row.stamp));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn the_earlier_record_and_the_complete_row_win(at in 0_i64..1 << 41, early in 0_i64..1 << 34, later in 0_i64..1 << 34) {
            let stamp = |age, complete| write_stamp(Timestamp(at), Timestamp(at + age), complete);
            prop_assert!(stamp(early, false) >= stamp(early + later, false));
            prop_assert!(stamp(early + later, true) > stamp(early, false));
            prop_assert!((at * 1000..at * 1000 + 1000).contains(&stamp(early, true)));
        }

        #[test]
        fn stored_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = RowBody::decode(&bytes);
            let _ = decode_placed(&bytes);
        }
    }
}
