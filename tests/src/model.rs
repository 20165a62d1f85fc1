//! What Backstamp must answer, said as plainly as it can be.
//!
//! The model is the judge of the whole product, so it is written from the contract and the two API
//! references alone, and it shares no code with what it judges. It keeps every raw event in a `Vec`
//! and answers by filtering, sorting and slicing: no tables, no tallies, no incremental upkeep. The
//! only index is the one from a message id to its `send`.
//!
//! ```text
//! records ─► take: decode ► repeat? ► expired? ► keep
//! query   ─► read ► known? ► join each event to its send ► filter ► sort ► slice ► render
//! ```
//!
//! Where the contract leaves something open, a comment that starts with "Open:" says so and says
//! what the model decides; histories leave such cases out unless they are asked for them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use chrono::{DateTime, NaiveDate, Utc};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::history::{Record, Topic};

/// Every raw type with the name that the endpoints show; both are accepted in a raw event.
pub const TYPES: [(&str, &str); 15] = [
    ("send", "sent"),
    ("delivery", "delivered"),
    ("bounce", "bounced"),
    ("open", "opened"),
    ("click", "clicked"),
    ("reply", "replied"),
    ("complaint", "complained"),
    ("subscribe", "subscribed"),
    ("unsubscribe", "unsubscribed"),
    ("global_unsubscribe", "globally_unsubscribed"),
    ("global_resubscribe", "globally_resubscribed"),
    ("automation_unsubscribe", "automation_unsubscribed"),
    ("purchase", "purchased"),
    ("create", "created"),
    ("import", "imported"),
];

/// The types that a campaign's event stream shows and filters by.
pub const CAMPAIGN_TYPES: [&str; 8] =
    ["sent", "delivered", "opened", "clicked", "replied", "bounced", "unsubscribed", "complained"];

/// The types that a contact's timeline shows and filters by.
pub const CONTACT_TYPES: [&str; 13] = [
    "sent",
    "delivered",
    "bounced",
    "opened",
    "clicked",
    "subscribed",
    "unsubscribed",
    "globally_unsubscribed",
    "globally_resubscribed",
    "automation_unsubscribed",
    "purchased",
    "created",
    "imported",
];

/// The groups that a contact's timeline filters by, with their types.
pub const TYPE_GROUPS: [(&str, &[&str]); 5] = [
    ("delivery", &["sent", "delivered", "bounced"]),
    ("engagement", &["opened", "clicked"]),
    (
        "subscription",
        &[
            "subscribed",
            "unsubscribed",
            "globally_unsubscribed",
            "globally_resubscribed",
            "automation_unsubscribed",
        ],
    ),
    ("commerce", &["purchased"]),
    ("lifecycle", &["created", "imported"]),
];

const MESSAGE_BYTES_MAX: usize = 64 * 1024;
const METADATA_BYTES_MAX: usize = 8 * 1024;
const ID_CHARS_MAX: usize = 64;
const NUMBER_MAX: u64 = 1 << 31;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;
const AHEAD_MS_MAX: i64 = DAY_MS;
const NS_PER_MS: i128 = 1_000_000;
const NS_PER_S: i128 = 1_000_000_000;
const NS_PER_DAY: i128 = 24 * 60 * 60 * NS_PER_S;

/// One of the two endpoints, and so one of the two things that have a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    /// The event stream of a campaign.
    Campaign,
    /// The timeline of a contact.
    Contact,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Campaign => "campaign",
            Self::Contact => "contact",
        })
    }
}

/// The query parameters of a request, as they are sent: any name, any value, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// A request without parameters.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same request with one parameter more (a name may be given more than once).
    #[must_use]
    pub fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.0.push((name.to_owned(), value.to_string()));
        self
    }

    /// The parameters in the order they were given.
    #[must_use]
    pub fn pairs(&self) -> &[(String, String)] {
        &self.0
    }

    /// The value of a parameter. "A parameter twice with different values" is an error; "an empty
    /// one counts as absent".
    fn value(&self, name: &str) -> Result<Option<&str>, Twice> {
        let mut values = self.0.iter().filter(|(n, v)| n == name && !v.is_empty()).map(|(_, v)| v.as_str());
        let first = values.next();
        if values.any(|value| Some(value) != first) { Err(Twice) } else { Ok(first) }
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, value)) in self.0.iter().enumerate() {
            write!(f, "{}{name}={value}", if index == 0 { "?" } else { "&" })?;
        }
        Ok(())
    }
}

/// A parameter was given twice with different values.
struct Twice;

/// What an endpoint must answer: the status, and the body.
///
/// A body of status 200 is complete. The body of an error holds only what the contract fixes (its
/// code, and where a reference shows them its message and details); see [`Answer::agrees_with`].
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The JSON body.
    pub body: Value,
}

impl Answer {
    /// Whether an answer that was received is this one: an equal body for 200; for an error the
    /// envelope with all that this one has, and a message.
    #[must_use]
    pub fn agrees_with(&self, status: u16, body: &Value) -> bool {
        if self.status != status {
            return false;
        }
        if status == 200 {
            return self.body == *body;
        }
        let (Some(expected), Some(got)) = (self.body["error"].as_object(), body["error"].as_object()) else {
            return false;
        };
        body.as_object().is_some_and(|envelope| envelope.len() == 1)
            && got.keys().all(|name| ["code", "message", "details"].contains(&name.as_str()))
            && got.get("message").and_then(Value::as_str).is_some_and(|message| !message.is_empty())
            && expected.iter().all(|(name, value)| got.get(name) == Some(value))
    }

    fn error(status: u16, code: &str) -> Self {
        Self { status, body: json!({ "error": { "code": code } }) }
    }

    fn not_found(endpoint: Endpoint) -> Self {
        match endpoint {
            Endpoint::Campaign => Self::error(404, "campaign_not_found"),
            Endpoint::Contact => Self {
                status: 404,
                body: json!({ "error": { "code": "RESOURCE_NOT_FOUND", "message": "Contact not found" } }),
            },
        }
    }

    fn bad_parameter(endpoint: Endpoint) -> Self {
        match endpoint {
            Endpoint::Campaign => Self::error(400, "invalid_parameter"),
            Endpoint::Contact => Self::error(422, "VALIDATION_ERROR"),
        }
    }

    /// An unknown `type`: the one validation error whose words a reference shows.
    fn bad_type(endpoint: Endpoint, value: &str) -> Self {
        if endpoint == Endpoint::Campaign {
            return Self::error(400, "invalid_event_type");
        }
        let message = format!("Invalid value '{value}' for filter 'type'");
        let details = json!({ "type": [message] });
        let error = json!({ "code": "VALIDATION_ERROR", "message": message, "details": details });
        Self { status: 422, body: json!({ "error": error }) }
    }
}

/// What became of a record that the model was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// A new event: it is kept.
    Kept,
    /// An event that is known already: it changes nothing.
    Repeat,
    /// A valid event, already past retention: dropped.
    Expired,
    /// A reference or the deletion of one.
    Reference,
    /// Malformed or against a rule, and why: it changes nothing, and is a dead letter.
    Refused(String),
}

/// What an event is known by: account, id, and its time in milliseconds since 1970.
pub type Identity = (String, String, i64);

/// Where an event that was kept is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// On every timeline that shows it; there may be none.
    Projected {
        /// Whether there is one.
        is_shown: bool,
    },
    /// Kept out of all timelines.
    Filtered,
    /// It waits for its `send`, which has not come.
    Waiting {
        /// Whether it shows on a timeline already by what it says itself.
        is_shown: bool,
    },
}

/// Everything that was published, and what must be answered for it.
#[derive(Clone, Debug)]
pub struct Model {
    retention_ms: i64,
    events: Vec<Event>,
    /// Account, event id and time in milliseconds of each event that was kept.
    seen: HashSet<(String, String, i64)>,
    /// Account and message id of each `send`, with its place in `events`.
    sends: HashMap<(String, String), usize>,
    /// Kind, account and id of each reference, with what is known of it.
    references: HashMap<(String, String, String), Reference>,
    /// What exists.
    known: BTreeSet<(Endpoint, String, String)>,
}

/// The latest name and e-mail address that a reference ever had.
#[derive(Clone, Debug, Default)]
struct Reference {
    name: Option<String>,
    email: Option<String>,
}

/// A raw event: ids that are UUIDs in lower case, the type by its shown name, the time to the
/// millisecond.
#[derive(Clone, Debug)]
struct Event {
    account: String,
    id: String,
    kind: &'static str,
    at_ms: i64,
    contact: Option<String>,
    email: Option<String>,
    message: Option<String>,
    campaign: Option<String>,
    automation: Option<String>,
    list: Option<String>,
    step: Option<String>,
    url: Option<String>,
    /// A click on a link of the list's own: `unsubscribe` or `preferences`.
    is_list_management: bool,
    bounce_type: Option<String>,
    bounce_reason: Option<String>,
    purchase: Value,
    metadata: Map<String, Value>,
}

impl Model {
    /// A model that has seen nothing. The retention is in days of event time.
    #[must_use]
    pub fn new(retention_days: u32) -> Self {
        Self {
            retention_ms: i64::from(retention_days) * DAY_MS,
            events: Vec::new(),
            seen: HashSet::new(),
            sends: HashMap::new(),
            references: HashMap::new(),
            known: BTreeSet::new(),
        }
    }

    /// Takes a record that the broker (or the intake) stamped with `broker_time`.
    pub fn take(&mut self, record: &Record, broker_time: DateTime<Utc>) -> Taken {
        let taken = match record.topic {
            Topic::Events => self.take_event(record, broker_time.timestamp_millis()),
            Topic::References => self.take_reference(record),
        };
        taken.unwrap_or_else(Taken::Refused)
    }

    fn take_event(&mut self, record: &Record, broker_ms: i64) -> Result<Taken, String> {
        // "Validity is judged first": a refused event leaves no trace at all.
        let event = decode_event(record.value.as_deref().unwrap_or_default(), broker_ms)?;
        // "An event is known by account, `id` and `occurred_at`."
        let identity = (event.account.clone(), event.id.clone(), event.at_ms);
        if self.seen.contains(&identity) {
            return Ok(Taken::Repeat);
        }
        // "A campaign or contact exists once its reference or any event of it was taken in."
        // Open: whether an event that is dropped as expired was taken in. Here it was, as the intake
        // says "accepted" for it, and as an event that expires a moment later has the same effect.
        if let Some(campaign) = &event.campaign {
            self.known.insert((Endpoint::Campaign, event.account.clone(), campaign.clone()));
        }
        if let Some(contact) = &event.contact {
            self.known.insert((Endpoint::Contact, event.account.clone(), contact.clone()));
        }
        // Open: whether a `send` that is dropped still supplies what its opens leave out. Here it
        // does not: dropped is dropped.
        if event.at_ms < broker_ms - self.retention_ms {
            return Ok(Taken::Expired);
        }
        if let ("sent", Some(message)) = (event.kind, &event.message) {
            let message = (event.account.clone(), message.clone());
            self.sends.entry(message).or_insert(self.events.len());
        }
        self.seen.insert(identity);
        self.events.push(event);
        Ok(Taken::Kept)
    }

    fn take_reference(&mut self, record: &Record) -> Result<Taken, String> {
        let value = record.value.as_deref().unwrap_or_default();
        if value.is_empty() {
            // "A deleted reference's last name" is shown, and what was known once goes on existing:
            // a deletion takes nothing away. Open: the e-mail address of a deleted contact; it is
            // kept here, like a name.
            return Ok(Taken::Reference);
        }
        let value = json_object(value)?;
        let fields = Fields(&value);
        let kind = fields.required("kind", fields.text("kind")?)?;
        let account = fields.account()?;
        let id = match kind.as_str() {
            "contact" => fields.required("id", fields.contact("id")?)?,
            "campaign" | "automation" | "list" => fields.required("id", fields.id("id")?)?,
            _ => return Err(format!("unknown kind of reference {kind}")),
        };
        if value.get("deleted") == Some(&Value::Bool(true)) {
            return Ok(Taken::Reference);
        }
        let endpoint = match kind.as_str() {
            "campaign" => Some(Endpoint::Campaign),
            "contact" => Some(Endpoint::Contact),
            _ => None,
        };
        if let Some(endpoint) = endpoint {
            self.known.insert((endpoint, account.clone(), id.clone()));
        }
        // An update without a name, or without an address, keeps the last one known.
        let (name, email) = (fields.text("name")?, fields.text("email")?);
        let reference = self.references.entry((kind, account, id)).or_default();
        reference.name = name.or(reference.name.take());
        reference.email = email.or(reference.email.take());
        Ok(Taken::Reference)
    }

    /// What the campaign event stream must answer at `now`.
    #[must_use]
    pub fn campaign_page(&self, account: &str, campaign: &str, query: &Query, now: DateTime<Utc>) -> Answer {
        self.timeline(Endpoint::Campaign, account, campaign).page(query, now)
    }

    /// What the contact timeline must answer at `now`.
    #[must_use]
    pub fn contact_page(&self, account: &str, contact: &str, query: &Query, now: DateTime<Utc>) -> Answer {
        self.timeline(Endpoint::Contact, account, contact).page(query, now)
    }

    /// The timeline of one campaign or contact, empty if the account has none of this id.
    #[must_use]
    pub fn timeline(&self, endpoint: Endpoint, account: &str, id: &str) -> Timeline<'_> {
        let id = normal(id);
        let is_known = self.known.contains(&(endpoint, account.to_owned(), id.clone()));
        let of_account = self.events.iter().filter(|event| event.account == account);
        let rows = of_account.filter_map(|event| self.row(endpoint, event));
        Timeline::new(self, endpoint, is_known, rows.filter(|row| row.place() == Some(&id)).collect())
    }

    /// The timeline of every campaign and contact that exists, by endpoint, account and id; the same
    /// as [`Model::timeline`] gives one by one, for the price of one.
    #[must_use]
    pub fn timelines(&self) -> BTreeMap<(Endpoint, String, String), Timeline<'_>> {
        let mut rows: BTreeMap<_, Vec<Row<'_>>> =
            self.known.iter().map(|place| (place.clone(), Vec::new())).collect();
        for endpoint in [Endpoint::Campaign, Endpoint::Contact] {
            for row in self.events.iter().filter_map(|event| self.row(endpoint, event)) {
                if let Some(id) = row.place() {
                    let place = (endpoint, row.event.account.clone(), id.to_owned());
                    rows.entry(place).or_default().push(row);
                }
            }
        }
        rows.into_iter()
            .map(|(place, rows)| {
                let is_known = self.known.contains(&place);
                let timeline = Timeline::new(self, place.0, is_known, rows);
                (place, timeline)
            })
            .collect()
    }

    /// Where each event that was kept is now.
    #[must_use]
    pub fn fates(&self) -> BTreeMap<Identity, Fate> {
        let fate = |event: &Event| {
            if event.is_list_management {
                return Fate::Filtered;
            }
            let rows = [Endpoint::Campaign, Endpoint::Contact].map(|endpoint| self.row(endpoint, event));
            let is_shown = rows.iter().flatten().any(|row| row.place().is_some());
            if self.waits(event) { Fate::Waiting { is_shown } } else { Fate::Projected { is_shown } }
        };
        let identity = |event: &Event| (event.account.clone(), event.id.clone(), event.at_ms);
        self.events.iter().map(|event| (identity(event), fate(event))).collect()
    }

    /// Whether a `send` that has not come could still supply something that the event leaves out and a timeline shows.
    fn waits(&self, event: &Event) -> bool {
        let Some(message) = &event.message else { return false };
        let shows_list = matches!(event.kind, "subscribed" | "unsubscribed");
        let lacks = [&event.contact, &event.email, &event.campaign, &event.automation, &event.step];
        let lacks = lacks.iter().any(|field| field.is_none()) || (shows_list && event.list.is_none());
        lacks && event.kind != "sent" && !self.sends.contains_key(&(event.account.clone(), message.clone()))
    }

    /// The event as a row of the endpoint, if that endpoint shows its type, joined to its `send`,
    /// "which supplies what the event leaves out: contact, email, campaign, automation, list, step".
    fn row<'a>(&'a self, endpoint: Endpoint, event: &'a Event) -> Option<Row<'a>> {
        let shown_type = shown_type(endpoint, event)?;
        let send = event.message.as_ref().and_then(|message| {
            let place = self.sends.get(&(event.account.clone(), message.clone()))?;
            Some(&self.events[*place])
        });
        let own_or_sent = |field: fn(&Event) -> Option<&str>| field(event).or_else(|| field(send?));
        Some(Row {
            event,
            endpoint,
            shown_type,
            contact: own_or_sent(|event| event.contact.as_deref()),
            email: own_or_sent(|event| event.email.as_deref()),
            campaign: own_or_sent(|event| event.campaign.as_deref()),
            automation: own_or_sent(|event| event.automation.as_deref()),
            list: own_or_sent(|event| event.list.as_deref()),
            step: own_or_sent(|event| event.step.as_deref()),
        })
    }

    fn reference(&self, kind: &str, account: &str, id: &str) -> Option<&Reference> {
        self.references.get(&(kind.to_owned(), account.to_owned(), id.to_owned()))
    }
}

/// The type as the endpoint shows it; `None` where the endpoint does not show the event.
fn shown_type(endpoint: Endpoint, event: &Event) -> Option<&'static str> {
    // "List-management clicks: kept out of both."
    if event.is_list_management {
        return None;
    }
    let (types, shown): (&[&str], _) = match (endpoint, event.kind) {
        // "Every opt-out that carries the campaign shows as `unsubscribed`."
        (Endpoint::Campaign, "globally_unsubscribed" | "automation_unsubscribed") => {
            (&CAMPAIGN_TYPES, "unsubscribed")
        }
        (Endpoint::Campaign, kind) => (&CAMPAIGN_TYPES, kind),
        (Endpoint::Contact, kind) => (&CONTACT_TYPES, kind),
    };
    types.contains(&shown).then_some(shown)
}

/// An event on the timeline of one of the endpoints, with what its `send` supplied.
#[derive(Clone, Debug)]
struct Row<'a> {
    event: &'a Event,
    endpoint: Endpoint,
    shown_type: &'static str,
    contact: Option<&'a str>,
    email: Option<&'a str>,
    campaign: Option<&'a str>,
    automation: Option<&'a str>,
    list: Option<&'a str>,
    step: Option<&'a str>,
}

impl Row<'_> {
    /// The campaign or contact on whose timeline the row stands.
    fn place(&self) -> Option<&str> {
        match self.endpoint {
            Endpoint::Campaign => self.campaign,
            Endpoint::Contact => self.contact,
        }
    }

    fn to_json(&self, model: &Model) -> Value {
        match self.endpoint {
            Endpoint::Campaign => self.to_campaign_json(model),
            Endpoint::Contact => self.to_contact_json(model),
        }
    }

    fn to_campaign_json(&self, model: &Model) -> Value {
        json!({
            "id": self.event.id,
            "type": self.shown_type,
            "contact_id": self.contact,
            "email": self.shown_email(model),
            "step_id": self.step,
            "timestamp": shown_time(self.event.at_ms),
            "metadata": self.metadata(),
        })
    }

    fn to_contact_json(&self, model: &Model) -> Value {
        // "References on a contact's row: campaign and automation on every event that carries them
        // (or whose message's `send` did); list on `subscribed` and `unsubscribed` only."
        let list = self.list.filter(|_| ["subscribed", "unsubscribed"].contains(&self.shown_type));
        json!({
            "uuid": shown_uuid(&self.event.id),
            "event_type": self.shown_type,
            "happened_at": shown_time(self.event.at_ms),
            "campaign": self.reference(model, "campaign", self.campaign),
            "automation": self.reference(model, "automation", self.automation),
            "list": self.reference(model, "list", list),
            "detail": self.detail(),
        })
    }

    /// "The event's own; else its `send`'s; else the latest of the contact's reference; else `null`."
    fn shown_email(&self, model: &Model) -> Option<String> {
        let reference = || model.reference("contact", &self.event.account, self.contact?)?.email.clone();
        self.email.map(str::to_owned).or_else(reference)
    }

    /// "The current name; a deleted reference's last name; `null` if no name was ever known."
    fn reference(&self, model: &Model, kind: &str, id: Option<&str>) -> Value {
        let Some(id) = id else { return Value::Null };
        let name =
            model.reference(kind, &self.event.account, id).and_then(|reference| reference.name.as_deref());
        json!({ "uuid": id, "name": name })
    }

    /// "Whatever the event's `metadata` held; always an object", with what the type adds. Open: a
    /// `metadata` that has one of these names itself; the event's own field wins here.
    fn metadata(&self) -> Value {
        let mut metadata = self.event.metadata.clone();
        if self.event.kind == "clicked" {
            metadata.insert("url".to_owned(), json!(self.event.url));
        }
        if self.event.kind == "bounced" {
            metadata.insert("bounce_type".to_owned(), json!(self.bounce_type()));
            if let Some(reason) = &self.event.bounce_reason {
                metadata.insert("reason".to_owned(), json!(reason));
            }
        }
        Value::Object(metadata)
    }

    fn detail(&self) -> Value {
        match self.event.kind {
            "clicked" => json!({ "url": self.event.url }),
            "bounced" => json!({ "type": self.bounce_type() }),
            "purchased" => self.event.purchase.clone(),
            _ => Value::Null,
        }
    }

    /// "No type means soft."
    fn bounce_type(&self) -> &str {
        self.event.bounce_type.as_deref().unwrap_or("soft")
    }
}

/// All that one campaign or contact ever had of its endpoint's types, newest first, expired or not.
#[derive(Clone, Debug)]
pub struct Timeline<'a> {
    model: &'a Model,
    endpoint: Endpoint,
    is_known: bool,
    rows: Vec<Row<'a>>,
}

impl<'a> Timeline<'a> {
    /// "Newest first; equal times by event id (as text), descending."
    fn new(model: &'a Model, endpoint: Endpoint, is_known: bool, mut rows: Vec<Row<'a>>) -> Self {
        rows.sort_by(|a, b| (b.event.at_ms, &b.event.id).cmp(&(a.event.at_ms, &a.event.id)));
        Self { model, endpoint, is_known, rows }
    }

    /// What the endpoint must answer at `now`.
    #[must_use]
    pub fn page(&self, query: &Query, now: DateTime<Utc>) -> Answer {
        match self.listing(query, now) {
            Ok(listing) => listing.page(listing.asked.page),
            Err(answer) => answer,
        }
    }

    /// Everything that a query asks for at `now`, whatever page it names.
    ///
    /// # Errors
    ///
    /// The answer, if it is no list: "the query (400/422), then 404".
    pub fn listing(&self, query: &Query, now: DateTime<Utc>) -> Result<Listing<'_>, Answer> {
        let asked = Asked::read(self.endpoint, query)?;
        if !self.is_known {
            return Err(Answer::not_found(self.endpoint));
        }
        // "Rows and `total` are cut at the same instant."
        let oldest_ms = now.timestamp_millis() - self.model.retention_ms;
        let live = self.rows.iter().filter(|row| row.event.at_ms >= oldest_ms);
        let rows = live.filter(|row| asked.wants(row)).collect();
        Ok(Listing { model: self.model, endpoint: self.endpoint, asked, rows })
    }

    /// Whether the campaign or contact exists.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// The times of the rows in milliseconds since 1970, newest first, to aim filters at.
    #[must_use]
    pub fn times_ms(&self) -> Vec<i64> {
        self.rows.iter().map(|row| row.event.at_ms).collect()
    }

    /// The contacts of the rows, to aim filters at.
    #[must_use]
    pub fn contacts(&self) -> Vec<String> {
        let contacts: BTreeSet<_> = self.rows.iter().filter_map(|row| row.contact).collect();
        contacts.into_iter().map(str::to_owned).collect()
    }
}

/// Everything that a query asks for, to be cut into pages.
#[derive(Clone, Debug)]
pub struct Listing<'a> {
    model: &'a Model,
    endpoint: Endpoint,
    asked: Asked,
    rows: Vec<&'a Row<'a>>,
}

impl Listing<'_> {
    /// How many rows there are on all pages.
    #[must_use]
    pub fn total(&self) -> usize {
        self.rows.len()
    }

    /// How many pages have rows.
    #[must_use]
    pub fn page_count(&self) -> usize {
        self.rows.len().div_ceil(self.asked.per_page)
    }

    /// The answer for a page, from 1. "Page past the end: 200, empty, true total."
    #[must_use]
    pub fn page(&self, page: usize) -> Answer {
        let per_page = self.asked.per_page;
        let rows = self.rows.iter().skip((page - 1).saturating_mul(per_page)).take(per_page);
        let rows: Vec<Value> = rows.map(|row| row.to_json(self.model)).collect();
        let total = self.total();
        let body = match self.endpoint {
            Endpoint::Campaign => json!({
                "data": { "events": rows },
                "meta": { "page": page, "per_page": per_page, "total": total },
            }),
            Endpoint::Contact => json!({
                "data": rows,
                "pagination": { "current_page": page, "per_page": per_page, "total": total },
            }),
        };
        Answer { status: 200, body }
    }
}

/// A query that is valid, as what it asks for.
#[derive(Clone, Debug)]
struct Asked {
    page: usize,
    per_page: usize,
    types: Vec<&'static str>,
    contact: Option<String>,
    /// Bounds in nanoseconds since 1970, both inclusive.
    from_ns: Option<i128>,
    to_ns: Option<i128>,
}

impl Asked {
    fn read(endpoint: Endpoint, query: &Query) -> Result<Self, Answer> {
        let bad = || Answer::bad_parameter(endpoint);
        let value = |name| query.value(name).map_err(|Twice| bad());
        let number = |name, default, max| match value(name)? {
            None => Ok(default),
            Some(text) => positive_number(text, max).ok_or_else(bad),
        };
        let page = number("page", 1, NUMBER_MAX)?;
        let mut types = match endpoint {
            Endpoint::Campaign => CAMPAIGN_TYPES.to_vec(),
            Endpoint::Contact => CONTACT_TYPES.to_vec(),
        };
        if let Some(only) = value("type")? {
            if !types.contains(&only) {
                return Err(Answer::bad_type(endpoint, only));
            }
            types.retain(|name| *name == only);
        }
        let bound = |name, read: fn(&str) -> Option<i128>| match value(name)? {
            None => Ok(None),
            Some(text) => read(text).map(Some).ok_or_else(bad),
        };
        match endpoint {
            Endpoint::Campaign => Ok(Self {
                page,
                // "Over 100 is served as 100 and `meta.per_page` says so."
                per_page: number("per_page", 50, NUMBER_MAX)?.min(100),
                types,
                contact: match value("contact_id")? {
                    None => None,
                    Some(text) if is_uuid(text) => Some(normal(text)),
                    Some(_) => return Err(bad()),
                },
                from_ns: bound("from_date", first_instant_ns)?,
                to_ns: bound("to_date", last_instant_ns)?,
            }),
            Endpoint::Contact => {
                if let Some(group) = value("type_group")? {
                    let group = TYPE_GROUPS.iter().find(|(name, _)| *name == group).ok_or_else(bad)?;
                    types.retain(|name| group.1.contains(name));
                }
                Ok(Self {
                    page,
                    per_page: number("per_page", 100, 100)?,
                    types,
                    contact: None,
                    from_ns: bound("from", day_ns)?,
                    to_ns: bound("to", |text| Some(day_ns(text)? + NS_PER_DAY - 1))?,
                })
            }
        }
    }

    fn wants(&self, row: &Row<'_>) -> bool {
        let at_ns = i128::from(row.event.at_ms) * NS_PER_MS;
        self.types.contains(&row.shown_type)
            && self.contact.as_deref().is_none_or(|contact| row.contact == Some(contact))
            && self.from_ns.is_none_or(|from_ns| from_ns <= at_ns)
            && self.to_ns.is_none_or(|to_ns| at_ns <= to_ns)
    }
}

/// "Page or per_page 0, negative, not a number, over 2^31" is no number here.
fn positive_number(text: &str, max: u64) -> Option<usize> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = if is_number { text.parse().ok()? } else { return None };
    if (1..=max).contains(&number) { usize::try_from(number).ok() } else { None }
}

/// The first instant that a `from_date` covers: "no zone means UTC; a bare date is its first instant".
fn first_instant_ns(text: &str) -> Option<i128> {
    day_ns(text).or_else(|| bound_time(text).map(|time| time.ns))
}

/// The last instant that a `to_date` covers: "a bare date is … its last in `to_date`", and "a bound
/// without fraction covers its whole second".
fn last_instant_ns(text: &str) -> Option<i128> {
    if let Some(day_ns) = day_ns(text) {
        return Some(day_ns + NS_PER_DAY - 1);
    }
    let time = bound_time(text)?;
    Some(if time.has_fraction { time.ns } else { time.ns + NS_PER_S - 1 })
}

/// "`+` arriving as a space is understood."
fn bound_time(text: &str) -> Option<Time> {
    read_time(&text.replace(' ', "+"))
}

/// A point in time as it was written.
struct Time {
    /// Nanoseconds since 1970; UTC if no zone was written.
    ns: i128,
    has_zone: bool,
    has_fraction: bool,
}

/// Reads `2026-04-17T14:23:05`, with or without a fraction of up to nine digits, with or without a
/// zone (`Z`, `+02:00`).
fn read_time(text: &str) -> Option<Time> {
    let (date, rest) = text.split_at_checked(10)?;
    let (clock, rest) = rest.strip_prefix(['T', 't'])?.split_at_checked(8)?;
    let (fraction, zone) = match rest.strip_prefix('.') {
        None => (None, rest),
        Some(rest) => {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (fraction, zone) = rest.split_at(digits);
            (Some(fraction), zone)
        }
    };
    let [hour, minute, second] = clock_parts(clock)?;
    let seconds_ns = i128::from(hour * 3600 + minute * 60 + second) * NS_PER_S;
    let fraction_ns = fraction.map_or(Some(0), fraction_ns)?;
    let zone_ns = if zone.is_empty() { Some(0) } else { zone_ns(zone) }?;
    Some(Time {
        ns: day_ns(date)? + seconds_ns + fraction_ns - zone_ns,
        has_zone: !zone.is_empty(),
        has_fraction: fraction.is_some(),
    })
}

/// Hour, minute and second of `14:23:05`.
fn clock_parts(text: &str) -> Option<[u32; 3]> {
    let mut parts = text.split(':').map(two_digits);
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    (parts.next().is_none() && hour < 24 && minute < 60 && second < 60).then_some([hour, minute, second])
}

/// Nanoseconds of the digits behind a decimal point.
fn fraction_ns(digits: &str) -> Option<i128> {
    if digits.is_empty() || digits.len() > 9 {
        return None;
    }
    format!("{digits:0<9}").parse().ok()
}

/// How far a zone is ahead of UTC.
fn zone_ns(text: &str) -> Option<i128> {
    let (sign, offset) = match text.split_at_checked(1)? {
        ("Z" | "z", "") => return Some(0),
        ("+", offset) => (1, offset),
        ("-", offset) => (-1, offset),
        _ => return None,
    };
    let (hour, minute) = offset.split_once(':')?;
    let (hour, minute) = (two_digits(hour)?, two_digits(minute)?);
    (hour < 24 && minute < 60).then(|| sign * i128::from(hour * 3600 + minute * 60) * NS_PER_S)
}

fn two_digits(text: &str) -> Option<u32> {
    let is_number = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { text.parse().ok() } else { None }
}

/// The first instant of a day of the calendar, in UTC; `None` for "anything but a real `YYYY-MM-DD`".
fn day_ns(text: &str) -> Option<i128> {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    if shape != "0000-00-00" {
        return None;
    }
    let (year, month, day) = (text[..4].parse().ok()?, text[5..7].parse().ok()?, text[8..].parse().ok()?);
    let midnight = NaiveDate::from_ymd_opt(year, month, day)?.and_hms_opt(0, 0, 0)?;
    Some(i128::from(midnight.and_utc().timestamp()) * NS_PER_S)
}

/// "Times shown: UTC, whole seconds, `2026-04-17T14:23:05Z`."
fn shown_time(at_ms: i64) -> Option<String> {
    let time = DateTime::from_timestamp(at_ms.div_euclid(1000), 0)?;
    Some(time.format("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// "The contact timeline shows an event id that is no UUID as its UUIDv5 in the OID namespace."
fn shown_uuid(id: &str) -> String {
    if is_uuid(id) { id.to_owned() } else { Uuid::new_v5(&Uuid::NAMESPACE_OID, id.as_bytes()).to_string() }
}

/// "One that is a UUID is shown in lower case", and is the same id in any case.
fn normal(id: &str) -> String {
    if is_uuid(id) { id.to_ascii_lowercase() } else { id.to_owned() }
}

/// Whether a text is a UUID in its usual form. Open: the forms without hyphens, with braces or with
/// `urn:`; they are no UUIDs here.
fn is_uuid(text: &str) -> bool {
    let shape: String = text.chars().map(|c| if c.is_ascii_hexdigit() { '0' } else { c }).collect();
    shape == "00000000-0000-0000-0000-000000000000"
}

fn json_object(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("not a JSON object".to_owned()),
        Err(error) => Err(format!("not JSON: {error}")),
    }
}

fn decode_event(bytes: &[u8], broker_ms: i64) -> Result<Event, String> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err("over 64 KiB".to_owned());
    }
    let object = json_object(bytes)?;
    let fields = Fields(&object);
    let kind = fields.kind()?;
    let click = if kind == "clicked" { Some(decode_click(&fields)?) } else { None };
    let (bounce_type, bounce_reason) = if kind == "bounced" { decode_bounce(&fields)? } else { (None, None) };
    let message = fields.id("message_id")?;
    let contact = fields.contact("contact_id")?;
    if contact.is_none() && message.is_none() {
        return Err("contact_id is required without message_id".to_owned());
    }
    Ok(Event {
        account: fields.account()?,
        id: fields.required("id", fields.id("id")?)?,
        kind,
        at_ms: fields.time_ms(broker_ms)?,
        contact,
        email: fields.text("email")?,
        message,
        campaign: fields.id("campaign_id")?,
        automation: fields.id("automation_id")?,
        list: fields.id("list_id")?,
        step: fields.id("step_id")?,
        is_list_management: click.as_ref().is_some_and(|(_, is_list_management)| *is_list_management),
        url: click.map(|(url, _)| url),
        bounce_type,
        bounce_reason,
        purchase: if kind == "purchased" { decode_purchase(&fields)? } else { Value::Null },
        metadata: fields.metadata()?,
    })
}

/// The URL of a click, and whether it is a list-management click, "known by `link`".
fn decode_click(fields: &Fields<'_>) -> Result<(String, bool), String> {
    let url = fields.required("url", fields.text("url")?)?;
    match fields.text("link")?.as_deref() {
        None | Some("content") => Ok((url, false)),
        Some("unsubscribe" | "preferences") => Ok((url, true)),
        Some(link) => Err(format!("unknown link {link}")),
    }
}

/// Type and reason of a bounce, either of which may be left out.
fn decode_bounce(fields: &Fields<'_>) -> Result<(Option<String>, Option<String>), String> {
    let Some(bounce) = fields.object("bounce")? else { return Ok((None, None)) };
    let bounce = Fields(bounce);
    let bounce_type = bounce.text("type")?;
    if let Some(other) = bounce_type.as_deref().filter(|name| !["hard", "soft"].contains(name)) {
        return Err(format!("unknown type of bounce {other}"));
    }
    Ok((bounce_type, bounce.text("reason")?))
}

/// The detail that a purchase shows: the product, and "amounts … never".
fn decode_purchase(fields: &Fields<'_>) -> Result<Value, String> {
    let purchase = fields.required("purchase", fields.object("purchase")?)?;
    let purchase = Fields(purchase);
    let is_subscription = purchase.0.get("is_subscription").and_then(Value::as_bool);
    Ok(json!({
        "order_uuid": purchase.required("order_uuid", purchase.text("order_uuid")?)?,
        "product_uuid": purchase.required("product_uuid", purchase.text("product_uuid")?)?,
        "product_name": purchase.required("product_name", purchase.text("product_name")?)?,
        "variant_name": purchase.text("variant_name")?,
        "is_subscription": purchase.required("is_subscription", is_subscription)?,
    }))
}

/// The fields of a raw event or reference. Open: a field that is `null`; it counts as left out.
struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    fn required<T>(&self, name: &str, value: Option<T>) -> Result<T, String> {
        value.ok_or_else(|| format!("{name} is required"))
    }

    fn text(&self, name: &str) -> Result<Option<String>, String> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(format!("{name} is no text")),
        }
    }

    fn object(&self, name: &str) -> Result<Option<&Map<String, Value>>, String> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(_) => Err(format!("{name} is no object")),
        }
    }

    /// "Opaque strings of 1 to 64 characters `[A-Za-z0-9_.:-]`."
    fn id(&self, name: &str) -> Result<Option<String>, String> {
        self.checked(name, |id| {
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_.:-".contains(c);
            (1..=ID_CHARS_MAX).contains(&id.len()) && id.chars().all(is_allowed)
        })
    }

    /// "A contact's id is a UUID."
    fn contact(&self, name: &str) -> Result<Option<String>, String> {
        self.checked(name, is_uuid)
    }

    /// "An account's of `[A-Za-z0-9_.-]`."
    fn account(&self) -> Result<String, String> {
        let account = self.required("account_id", self.id("account_id")?)?;
        if account.contains(':') { Err("account_id is no account's id".to_owned()) } else { Ok(account) }
    }

    fn checked(&self, name: &str, is_valid: fn(&str) -> bool) -> Result<Option<String>, String> {
        let id = self.text(name)?;
        if id.as_deref().is_some_and(|id| !is_valid(id)) {
            return Err(format!("{name} is no id of its kind"));
        }
        Ok(id.as_deref().map(normal))
    }

    /// The shown name of the type: "the names that the endpoints show are accepted too".
    fn kind(&self) -> Result<&'static str, String> {
        let name = self.required("type", self.text("type")?)?;
        let known = TYPES.iter().find(|(raw, shown)| *raw == name || *shown == name);
        known.map(|(_, shown)| *shown).ok_or_else(|| format!("unknown type {name}"))
    }

    /// "RFC 3339 with zone, up to nanoseconds (kept to the millisecond); up to 24 h ahead."
    fn time_ms(&self, broker_ms: i64) -> Result<i64, String> {
        let text = self.required("occurred_at", self.text("occurred_at")?)?;
        let time = read_time(&text).filter(|time| time.has_zone);
        let ns = time.ok_or_else(|| format!("occurred_at is no time with a zone: {text}"))?.ns;
        let at_ms = i64::try_from(ns.div_euclid(NS_PER_MS)).map_err(|error| error.to_string())?;
        if at_ms > broker_ms + AHEAD_MS_MAX { Err("more than 24 h ahead".to_owned()) } else { Ok(at_ms) }
    }

    /// "Object, up to 8 KiB", measured as compact JSON.
    fn metadata(&self) -> Result<Map<String, Value>, String> {
        let metadata = self.object("metadata")?.cloned().unwrap_or_default();
        let bytes = serde_json::to_vec(&metadata).map_err(|error| error.to_string())?;
        if bytes.len() > METADATA_BYTES_MAX { Err("metadata is over 8 KiB".to_owned()) } else { Ok(metadata) }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::history::{History, Knobs};

    const JANE: &str = "123e4567-e89b-12d3-a456-426614174000";
    const JOHN: &str = "7b1f9c2e-3a4d-4b8e-9c1d-2e3f4a5b6c7d";

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    /// The present of most tests.
    fn now() -> DateTime<Utc> {
        time("2026-06-21T12:00:00Z")
    }

    /// An event of account `a` at noon of 20 June 2026; `more` adds fields and overrides these.
    fn event(id: &str, raw_type: &str, more: &Value) -> Value {
        let occurred_at = "2026-06-20T12:00:00Z";
        let mut event = json!({ "id": id, "account_id": "a", "type": raw_type, "occurred_at": occurred_at });
        for (name, value) in more.as_object().into_iter().flatten() {
            event[name] = value.clone();
        }
        event
    }

    fn model_of(events: &[Value]) -> Model {
        let mut model = Model::new(180);
        for event in events {
            let taken = model.take(&Record::event(event), now());
            assert!(!matches!(taken, Taken::Refused(_)), "{taken:?} {event}");
        }
        model
    }

    fn refer(model: &mut Model, fields: &Value) {
        assert_eq!(model.take(&Record::reference(fields), now()), Taken::Reference);
    }

    fn refused(event: &Value) -> bool {
        matches!(Model::new(180).take(&Record::event(event), now()), Taken::Refused(_))
    }

    /// A query from `name=value&name=value`.
    fn query(text: &str) -> Query {
        let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
        pairs.fold(Query::new(), |query, (name, value)| query.with(name, value))
    }

    /// The rows of campaign `c` of account `a`.
    fn campaign_rows(model: &Model, text: &str) -> Vec<Value> {
        let answer = model.campaign_page("a", "c", &query(text), now());
        let rows = answer.body["data"]["events"].as_array().unwrap_or_else(|| panic!("{answer:?}")).clone();
        if !text.contains("page") {
            assert_eq!(answer.body["meta"]["total"], rows.len());
        }
        rows
    }

    /// The rows of Jane in account `a`.
    fn contact_rows(model: &Model, text: &str) -> Vec<Value> {
        let answer = model.contact_page("a", JANE, &query(text), now());
        let rows = answer.body["data"].as_array().unwrap_or_else(|| panic!("{answer:?}")).clone();
        if !text.contains("page") {
            assert_eq!(answer.body["pagination"]["total"], rows.len());
        }
        rows
    }

    fn column(rows: &[Value], name: &str) -> Vec<String> {
        rows.iter().map(|row| row[name].as_str().unwrap_or("null").to_owned()).collect()
    }

    fn campaign_ids(model: &Model, text: &str) -> Vec<String> {
        column(&campaign_rows(model, text), "id")
    }

    // The examples of the two API references.

    #[test]
    fn example_of_the_campaign_reference() {
        let common = json!({ "account_id": "a", "campaign_id": "cmp_abc123", "contact_id": JANE,
            "email": "jane@example.com", "step_id": "step_1" });
        let mut opened = common.clone();
        opened["id"] = json!("evt_a1b2c3d4");
        opened["type"] = json!("open");
        opened["occurred_at"] = json!("2026-04-17T14:23:05Z");
        opened["metadata"] = json!({ "user_agent": "Mozilla/5.0 ...", "ip_country": "DE" });
        let mut clicked = common;
        clicked["id"] = json!("evt_b2c3d4e5");
        clicked["type"] = json!("click");
        clicked["occurred_at"] = json!("2026-04-17T14:23:42Z");
        clicked["url"] = json!("https://leadlex.com/demo");
        let model = model_of(&[opened, clicked]);
        let opened = json!({
            "id": "evt_a1b2c3d4",
            "type": "opened",
            "contact_id": "123e4567-e89b-12d3-a456-426614174000",
            "email": "jane@example.com",
            "step_id": "step_1",
            "timestamp": "2026-04-17T14:23:05Z",
            "metadata": { "user_agent": "Mozilla/5.0 ...", "ip_country": "DE" },
        });
        let clicked = json!({
            "id": "evt_b2c3d4e5",
            "type": "clicked",
            "contact_id": "123e4567-e89b-12d3-a456-426614174000",
            "email": "jane@example.com",
            "step_id": "step_1",
            "timestamp": "2026-04-17T14:23:42Z",
            "metadata": { "url": "https://leadlex.com/demo" },
        });
        let page =
            |text: &str| model.campaign_page("a", "cmp_abc123", &query(text), time("2026-04-18T00:00:00Z"));
        // Newest first: the words of the page win over the order in its example.
        let both = json!({
            "data": { "events": [clicked, opened] },
            "meta": { "page": 1, "per_page": 100, "total": 2 },
        });
        assert_eq!(page("per_page=100"), Answer { status: 200, body: both });
        let only_opened = json!({
            "data": { "events": [opened] },
            "meta": { "page": 1, "per_page": 100, "total": 1 },
        });
        assert_eq!(page("type=opened&per_page=100"), Answer { status: 200, body: only_opened });
    }

    #[test]
    fn example_of_the_contact_reference() {
        let contact = "7b1f9c2e-3a4d-4b8e-9c1d-2e3f4a5b6c7d";
        let spring = "d5a66ae0-e974-4b1b-81ef-4f14c425550a";
        let welcome = "a7b50db9-ada9-4367-86e8-88cb8d9353ac";
        let list = "c28f14de-47e6-41bc-8f3d-fb070c1c459c";
        let purchase = json!({
            "order_uuid": "2ca53614-fcaf-47df-bf6b-d9ab90be6b04",
            "product_uuid": "9354ecda-05bd-4144-bb8f-ba9c59fc8d61",
            "product_name": "Pro plan",
            "variant_name": "annual",
            "is_subscription": true,
            "amount": 4900,
            "currency": "EUR",
        });
        let mut model = model_of(&[
            event(
                "48378307-161e-4c4b-8936-575402894764",
                "unsubscribe",
                &json!({
                "contact_id": contact, "list_id": list, "occurred_at": "2026-06-10T12:00:00Z" }),
            ),
            event(
                "399e0e2a-10e0-42ea-8f31-364d12d4ec4e",
                "bounce",
                &json!({
                "contact_id": contact, "campaign_id": welcome, "occurred_at": "2026-06-18T07:00:00Z" }),
            ),
            event(
                "6732395d-199f-46d3-9f20-01aedc0d4a1b",
                "purchase",
                &json!({
                "contact_id": contact, "campaign_id": spring, "purchase": purchase,
                "occurred_at": "2026-06-19T18:41:05Z" }),
            ),
            event(
                "af556d1b-2b71-4df5-8228-fcaaf509db4c",
                "click",
                &json!({
                "contact_id": contact, "campaign_id": spring, "url": "https://shop.example/products/42",
                "occurred_at": "2026-06-20T09:14:02Z" }),
            ),
        ]);
        refer(
            &mut model,
            &json!({ "kind": "campaign", "account_id": "a", "id": spring, "name": "Spring Sale" }),
        );
        refer(
            &mut model,
            &json!({ "kind": "campaign", "account_id": "a", "id": welcome, "name": "Welcome" }),
        );
        refer(&mut model, &json!({ "kind": "list", "account_id": "a", "id": list, "name": "Newsletter" }));
        let expected = json!({
            "data": [
                {
                    "uuid": "af556d1b-2b71-4df5-8228-fcaaf509db4c",
                    "event_type": "clicked",
                    "happened_at": "2026-06-20T09:14:02Z",
                    "campaign": { "uuid": "d5a66ae0-e974-4b1b-81ef-4f14c425550a", "name": "Spring Sale" },
                    "automation": null,
                    "list": null,
                    "detail": { "url": "https://shop.example/products/42" },
                },
                {
                    "uuid": "6732395d-199f-46d3-9f20-01aedc0d4a1b",
                    "event_type": "purchased",
                    "happened_at": "2026-06-19T18:41:05Z",
                    "campaign": { "uuid": "d5a66ae0-e974-4b1b-81ef-4f14c425550a", "name": "Spring Sale" },
                    "automation": null,
                    "list": null,
                    "detail": {
                        "order_uuid": "2ca53614-fcaf-47df-bf6b-d9ab90be6b04",
                        "product_uuid": "9354ecda-05bd-4144-bb8f-ba9c59fc8d61",
                        "product_name": "Pro plan",
                        "variant_name": "annual",
                        "is_subscription": true,
                    },
                },
                {
                    "uuid": "399e0e2a-10e0-42ea-8f31-364d12d4ec4e",
                    "event_type": "bounced",
                    "happened_at": "2026-06-18T07:00:00Z",
                    "campaign": { "uuid": "a7b50db9-ada9-4367-86e8-88cb8d9353ac", "name": "Welcome" },
                    "automation": null,
                    "list": null,
                    "detail": { "type": "soft" },
                },
                {
                    "uuid": "48378307-161e-4c4b-8936-575402894764",
                    "event_type": "unsubscribed",
                    "happened_at": "2026-06-10T12:00:00Z",
                    "campaign": null,
                    "automation": null,
                    "list": { "uuid": "c28f14de-47e6-41bc-8f3d-fb070c1c459c", "name": "Newsletter" },
                    "detail": null,
                },
            ],
            "pagination": { "current_page": 1, "per_page": 100, "total": 4 },
        });
        assert_eq!(
            model.contact_page("a", contact, &Query::new(), now()),
            Answer { status: 200, body: expected }
        );
        let types = |text: &str| {
            let answer = model.contact_page("a", contact, &query(text), now());
            column(answer.body["data"].as_array().expect("rows"), "event_type")
        };
        assert_eq!(types("type_group=engagement"), ["clicked"]);
        assert_eq!(types("from=2026-06-18&to=2026-06-19"), ["purchased", "bounced"]);
    }

    #[test]
    fn errors_of_the_contact_reference() {
        let model = model_of(&[event("1", "create", &json!({ "contact_id": JANE }))]);
        let bogus = json!({ "error": {
            "code": "VALIDATION_ERROR",
            "message": "Invalid value 'bogus' for filter 'type'",
            "details": { "type": ["Invalid value 'bogus' for filter 'type'"] },
        } });
        assert_eq!(
            model.contact_page("a", JANE, &query("type=bogus"), now()),
            Answer { status: 422, body: bogus }
        );
        let unknown = json!({ "error": { "code": "RESOURCE_NOT_FOUND", "message": "Contact not found" } });
        for id in [JOHN, "jane"] {
            let answer = model.contact_page("a", id, &Query::new(), now());
            assert_eq!(answer, Answer { status: 404, body: unknown.clone() });
        }
    }

    #[test]
    fn answers_with_an_error_agree_on_what_is_fixed() {
        let answer = Answer::error(400, "invalid_parameter");
        let body = |code: &str, message: &str| json!({ "error": { "code": code, "message": message } });
        assert!(answer.agrees_with(400, &body("invalid_parameter", "any words")));
        assert!(!answer.agrees_with(400, &body("invalid_parameter", "")));
        assert!(!answer.agrees_with(400, &body("invalid_event_type", "any words")));
        assert!(!answer.agrees_with(404, &body("invalid_parameter", "any words")));
        let mut talkative = body("invalid_parameter", "any words");
        talkative["error"]["cause"] = json!("a table of the store");
        assert!(!answer.agrees_with(400, &talkative));
        assert!(!Answer::not_found(Endpoint::Contact).agrees_with(404, &body("RESOURCE_NOT_FOUND", "what?")));
        let page = Answer { status: 200, body: json!({ "data": [] }) };
        assert!(page.agrees_with(200, &json!({ "data": [] })));
        assert!(!page.agrees_with(200, &json!({ "data": [], "more": 1 })));
    }

    // The contract, section 1: the two endpoints.

    /// Every type under both of its names, with what the two endpoints show for it.
    #[test]
    fn types_show_where_and_as_the_contract_says() {
        let expected = [
            ("send", Some("sent"), Some("sent")),
            ("delivery", Some("delivered"), Some("delivered")),
            ("bounce", Some("bounced"), Some("bounced")),
            ("open", Some("opened"), Some("opened")),
            ("click", Some("clicked"), Some("clicked")),
            ("reply", Some("replied"), None),
            ("complaint", Some("complained"), None),
            ("subscribe", None, Some("subscribed")),
            ("unsubscribe", Some("unsubscribed"), Some("unsubscribed")),
            ("global_unsubscribe", Some("unsubscribed"), Some("globally_unsubscribed")),
            ("global_resubscribe", None, Some("globally_resubscribed")),
            ("automation_unsubscribe", Some("unsubscribed"), Some("automation_unsubscribed")),
            ("purchase", None, Some("purchased")),
            ("create", None, Some("created")),
            ("import", None, Some("imported")),
        ];
        let purchase = json!({ "order_uuid": JANE, "product_uuid": JANE, "product_name": "x",
            "is_subscription": false });
        let more = json!({ "contact_id": JANE, "campaign_id": "c", "url": "https://x.example",
            "purchase": purchase });
        for ((raw, on_campaign, on_contact), (_, shown)) in expected.into_iter().zip(TYPES) {
            for name in [raw, shown] {
                let model = model_of(&[event("1", name, &more)]);
                assert_eq!(column(&campaign_rows(&model, ""), "type"), Vec::from_iter(on_campaign), "{name}");
                assert_eq!(
                    column(&contact_rows(&model, ""), "event_type"),
                    Vec::from_iter(on_contact),
                    "{name}"
                );
                for filter in CAMPAIGN_TYPES {
                    let count = campaign_rows(&model, &format!("type={filter}")).len();
                    assert_eq!(count, usize::from(on_campaign == Some(filter)), "{name} {filter}");
                }
                for filter in CONTACT_TYPES {
                    let count = contact_rows(&model, &format!("type={filter}")).len();
                    assert_eq!(count, usize::from(on_contact == Some(filter)), "{name} {filter}");
                }
            }
        }
    }

    #[test]
    fn events_without_a_campaign_are_on_no_campaign_stream() {
        let model = model_of(&[
            event("1", "open", &json!({ "contact_id": JANE, "campaign_id": "c" })),
            event("2", "global_unsubscribe", &json!({ "contact_id": JANE })),
        ]);
        assert_eq!(campaign_ids(&model, ""), ["1"]);
        assert_eq!(contact_rows(&model, "").len(), 2);
    }

    #[test]
    fn groups_hold_the_types_of_the_reference() {
        let of = |group: &str| TYPE_GROUPS.iter().find(|(name, _)| *name == group).expect("a group").1.len();
        assert_eq!(
            [of("delivery"), of("engagement"), of("subscription"), of("commerce"), of("lifecycle")],
            [3, 2, 5, 1, 2]
        );
        let model = model_of(&[event("1", "open", &json!({ "contact_id": JANE }))]);
        assert_eq!(contact_rows(&model, "type_group=engagement").len(), 1);
        assert_eq!(contact_rows(&model, "type=opened&type_group=engagement").len(), 1);
        assert!(contact_rows(&model, "type_group=delivery").is_empty());
        // "Type outside type_group: 200, empty."
        assert!(contact_rows(&model, "type=opened&type_group=delivery").is_empty());
    }

    #[test]
    fn newest_first_to_the_millisecond_then_ids_as_text_descending() {
        let open = |id: &str, at: &str| {
            let at = format!("2026-06-20T12:00:00{at}");
            event(id, "open", &json!({ "contact_id": JANE, "campaign_id": "c", "occurred_at": at }))
        };
        let model = model_of(&[
            open("9", ".001Z"),
            open("10", ".001999999Z"),
            open("a", ".0010Z"),
            open("B", ".0015Z"),
            open("late", ".002Z"),
            open("early", "Z"),
        ]);
        let order = ["late", "a", "B", "9", "10", "early"];
        assert_eq!(campaign_ids(&model, ""), order);
        // "Ties sort by the id itself", not by the UUID that is shown for it.
        assert_eq!(column(&contact_rows(&model, ""), "uuid"), order.map(shown_uuid));
    }

    #[test]
    fn ids_that_are_uuids_are_lower_case_and_others_keep_theirs() {
        let upper = |id: &str| id.to_uppercase();
        let id = "AF556D1B-2B71-4DF5-8228-FCAAF509DB4C";
        let model = model_of(&[
            event(
                id,
                "subscribe",
                &json!({ "contact_id": upper(JANE), "campaign_id": upper(JOHN),
                "automation_id": upper(JOHN), "list_id": upper(JOHN) }),
            ),
            event("EVT", "open", &json!({ "contact_id": JANE, "campaign_id": JOHN, "step_id": upper(JOHN) })),
        ]);
        let rows = contact_rows(&model, "");
        assert_eq!(rows[0]["uuid"], id.to_lowercase());
        for reference in ["campaign", "automation", "list"] {
            assert_eq!(rows[0][reference]["uuid"], JOHN);
        }
        let answer = model.campaign_page("a", &upper(JOHN), &Query::new(), now());
        let row = &answer.body["data"]["events"][0];
        assert_eq!(
            (&row["id"], &row["step_id"], &row["contact_id"]),
            (&json!("EVT"), &json!(JOHN), &json!(JANE))
        );
        assert_eq!(model.contact_page("a", &upper(JANE), &Query::new(), now()).status, 200);
    }

    #[test]
    fn event_id_that_is_no_uuid_shows_as_its_uuid_v5() {
        let model = model_of(&[event("evt_a1b2c3d4", "open", &json!({ "contact_id": JANE }))]);
        assert_eq!(column(&contact_rows(&model, ""), "uuid"), ["58fb9c59-bb44-5c79-bf49-0aaaa2d3628d"]);
    }

    // The contract, section 1: settled where the references are silent.

    #[test]
    fn query_is_judged_before_existence() {
        let model = Model::new(180);
        let answer = model.campaign_page("a", "c", &query("type=bogus"), now());
        assert_eq!(answer, Answer::error(400, "invalid_event_type"));
        assert_eq!(
            model.campaign_page("a", "c", &query("page=0"), now()),
            Answer::error(400, "invalid_parameter")
        );
        assert_eq!(
            model.campaign_page("a", "c", &Query::new(), now()),
            Answer::error(404, "campaign_not_found")
        );
        assert_eq!(model.contact_page("a", "x", &query("page=0"), now()).status, 422);
        assert_eq!(model.contact_page("a", "x", &Query::new(), now()).status, 404);
    }

    #[test]
    fn another_accounts_id_is_an_unknown_id() {
        let more = json!({ "account_id": "b", "contact_id": JANE, "campaign_id": "c" });
        let mut model = model_of(&[event("1", "open", &more)]);
        refer(
            &mut model,
            &json!({ "kind": "contact", "account_id": "b", "id": JANE, "email": "b@example.com" }),
        );
        assert_eq!(model.campaign_page("a", "c", &Query::new(), now()).status, 404);
        assert_eq!(model.contact_page("a", JANE, &Query::new(), now()).status, 404);
        let own = event("1", "open", &json!({ "contact_id": JANE, "campaign_id": "c" }));
        assert_eq!(model.take(&Record::event(&own), now()), Taken::Kept);
        assert_eq!(column(&campaign_rows(&model, ""), "email"), ["null"]);
    }

    #[test]
    fn existence_is_by_reference_or_by_event_of_any_type() {
        let status = |model: &Model, endpoint: Endpoint, id: &str| {
            model.timeline(endpoint, "a", id).page(&Query::new(), now()).status
        };
        let mut model = Model::new(180);
        refer(&mut model, &json!({ "kind": "campaign", "account_id": "a", "id": "named" }));
        refer(&mut model, &json!({ "kind": "list", "account_id": "a", "id": "listed" }));
        refer(&mut model, &json!({ "kind": "contact", "account_id": "a", "id": JOHN }));
        let reply = event("1", "reply", &json!({ "contact_id": JANE }));
        let import = event("2", "import", &json!({ "contact_id": JANE, "campaign_id": "imported" }));
        model.take(&Record::event(&reply), now());
        model.take(&Record::event(&import), now());
        for id in ["named", "imported"] {
            assert_eq!(status(&model, Endpoint::Campaign, id), 200);
        }
        for id in [JANE, JOHN] {
            assert_eq!(status(&model, Endpoint::Contact, id), 200);
        }
        assert_eq!(status(&model, Endpoint::Campaign, "listed"), 404);
        model.take(&Record::reference_deletion("campaign", "a", "named"), now());
        assert_eq!(status(&model, Endpoint::Campaign, "named"), 200);
    }

    #[test]
    fn retention_cuts_rows_and_totals_and_leaves_existence() {
        let model = model_of(&[
            event(
                "old",
                "open",
                &json!({ "contact_id": JANE, "campaign_id": "c",
                "occurred_at": "2026-01-01T00:00:00Z" }),
            ),
            event("new", "open", &json!({ "contact_id": JANE, "campaign_id": "c" })),
        ]);
        let count = |now: &str| {
            let (campaign, contact) = (
                model.campaign_page("a", "c", &Query::new(), time(now)),
                model.contact_page("a", JANE, &Query::new(), time(now)),
            );
            let rows = campaign.body["data"]["events"].as_array().expect("rows").len();
            assert_eq!(campaign.body["meta"]["total"], rows);
            assert_eq!(contact.body["pagination"]["total"], rows);
            rows
        };
        assert_eq!(count("2026-06-29T23:00:00Z"), 2);
        assert_eq!(count("2026-06-30T01:00:00Z"), 1);
        assert_eq!(count("2027-01-01T00:00:00Z"), 0);
    }

    #[test]
    fn event_that_is_past_retention_when_it_comes_is_dropped() {
        let mut model = Model::new(30);
        let mut old = event("1", "open", &json!({ "contact_id": JANE, "campaign_id": "c" }));
        old["occurred_at"] = json!("2026-05-22T11:00:00Z");
        assert_eq!(model.take(&Record::event(&old), now()), Taken::Expired);
        assert_eq!(campaign_ids(&model, ""), [""; 0]);
        // "Validity is judged first."
        old["contact_id"] = json!("x");
        assert!(matches!(model.take(&Record::event(&old), now()), Taken::Refused(_)));
    }

    #[test]
    fn pages_slice_and_go_on_past_the_end() {
        let opens = (0..250)
            .map(|n| event(&format!("{n:03}"), "open", &json!({ "contact_id": JANE, "campaign_id": "c" })));
        let model = model_of(&Vec::from_iter(opens));
        let campaign = |text: &str| {
            let body = model.campaign_page("a", "c", &query(text), now()).body;
            let ids = column(body["data"]["events"].as_array().expect("rows"), "id");
            (ids.len(), ids.first().cloned().unwrap_or_default(), body["meta"].clone())
        };
        let meta = |page: usize, per_page: usize| json!({ "page": page, "per_page": per_page, "total": 250 });
        assert_eq!(campaign(""), (50, "249".to_owned(), meta(1, 50)));
        assert_eq!(campaign("page=2"), (50, "199".to_owned(), meta(2, 50)));
        assert_eq!(campaign("page=3&per_page=100"), (50, "049".to_owned(), meta(3, 100)));
        // "Over 100 is served as 100 and `meta.per_page` says so."
        assert_eq!(campaign("page=2&per_page=101"), (100, "149".to_owned(), meta(2, 100)));
        assert_eq!(campaign("page=6"), (0, String::new(), meta(6, 50)));
        assert_eq!(campaign("page=2147483648"), (0, String::new(), meta(1 << 31, 50)));
        let contact = |text: &str| {
            let body = model.contact_page("a", JANE, &query(text), now()).body;
            (body["data"].as_array().map(Vec::len), body["pagination"].clone())
        };
        let pagination =
            |page: usize, size: usize| json!({ "current_page": page, "per_page": size, "total": 250 });
        assert_eq!(contact(""), (Some(100), pagination(1, 100)));
        assert_eq!(contact("page=3"), (Some(50), pagination(3, 100)));
        assert_eq!(contact("page=4&per_page=100"), (Some(0), pagination(4, 100)));
    }

    #[test]
    fn bad_parameters_of_the_campaign_stream() {
        let model = model_of(&[event("1", "open", &json!({ "contact_id": JANE, "campaign_id": "c" }))]);
        let bad = [
            "page=0",
            "page=-1",
            "page=x",
            "page=1.5",
            "page=2147483649",
            "per_page=0",
            "per_page=-5",
            "per_page=ten",
            "per_page=2147483649",
            "contact_id=jane",
            "from_date=soon",
            "to_date=2026-02-30",
            "from_date=2026-06-20T12:00",
            "from_date=2026-06-20T24:00:00Z",
            "to_date=2026-06-20T12:00:00+2",
            "from_date=20260620",
            "to_date=2026-06-20T12:00:00.Z",
            "page=1&page=2",
            "type=sent&type=opened",
        ];
        for text in bad {
            let answer = model.campaign_page("a", "c", &query(text), now());
            assert_eq!(answer, Answer::error(400, "invalid_parameter"), "{text}");
        }
        for text in ["type=open", "type=Opened", "type=purchased", "type=globally_unsubscribed"] {
            let answer = model.campaign_page("a", "c", &query(text), now());
            assert_eq!(answer, Answer::error(400, "invalid_event_type"), "{text}");
        }
    }

    #[test]
    fn bad_parameters_of_the_contact_timeline() {
        let model = model_of(&[event("1", "open", &json!({ "contact_id": JANE }))]);
        let bad = [
            "page=0",
            "page=-1",
            "page=x",
            "page=2147483649",
            "per_page=0",
            "per_page=101",
            "per_page=x",
            "type=replied",
            "type=complained",
            "type=open",
            "type_group=mail",
            "from=2026-02-30",
            "from=2026-6-20",
            "to=2026-06-20T00:00:00Z",
            "to=20.06.2026",
            "to=2026-06-20 ",
            "page=1&page=2",
            "type_group=delivery&type_group=commerce",
        ];
        for text in bad {
            let answer = model.contact_page("a", JANE, &query(text), now());
            assert_eq!(
                (answer.status, &answer.body["error"]["code"]),
                (422, &json!("VALIDATION_ERROR")),
                "{text}"
            );
        }
    }

    #[test]
    fn empty_repeated_and_unknown_parameters_are_harmless() {
        let model = model_of(&[event("1", "open", &json!({ "contact_id": JANE, "campaign_id": "c" }))]);
        for text in ["type=&x=", "type=opened&type=opened", "x=1&x=2", "from=nonsense"] {
            assert_eq!(campaign_ids(&model, text), ["1"], "{text}");
        }
        assert_eq!(contact_rows(&model, "type=&from=&from_date=x&contact_id=y").len(), 1);
    }

    #[test]
    fn contact_filter_compares_ids_in_any_case() {
        let model = model_of(&[
            event("1", "open", &json!({ "contact_id": JANE, "campaign_id": "c" })),
            event("2", "open", &json!({ "contact_id": JOHN, "campaign_id": "c" })),
        ]);
        assert_eq!(campaign_ids(&model, &format!("contact_id={}", JANE.to_uppercase())), ["1"]);
        assert!(campaign_ids(&model, "contact_id=00000000-0000-0000-0000-000000000000").is_empty());
    }

    #[test]
    fn bounds_of_the_campaign_stream() {
        let open = |id: &str, at: &str| {
            event(id, "open", &json!({ "contact_id": JANE, "campaign_id": "c", "occurred_at": at }))
        };
        let model = model_of(&[
            open("1", "2026-06-18T23:59:59.999Z"),
            open("2", "2026-06-19T00:00:00Z"),
            open("3", "2026-06-19T10:00:05.000Z"),
            open("4", "2026-06-19T10:00:05.500Z"),
            open("5", "2026-06-19T10:00:05.999Z"),
            open("6", "2026-06-19T10:00:06Z"),
            open("7", "2026-06-20T00:00:00+00:00"),
        ]);
        let expected = [
            ("from_date=2026-06-19", "765432"),
            ("to_date=2026-06-19", "654321"),
            ("from_date=2026-06-19&to_date=2026-06-19", "65432"),
            // A bound without fraction covers its whole second.
            ("from_date=2026-06-19T10:00:05Z", "76543"),
            ("to_date=2026-06-19T10:00:05Z", "54321"),
            ("from_date=2026-06-19T10:00:05Z&to_date=2026-06-19T10:00:05Z", "543"),
            // One with a fraction is exact.
            ("from_date=2026-06-19T10:00:05.5Z", "7654"),
            ("to_date=2026-06-19T10:00:05.500Z", "4321"),
            ("to_date=2026-06-19T10:00:05.0Z", "321"),
            ("from_date=2026-06-19T10:00:05.000000001Z", "7654"),
            ("to_date=2026-06-19T10:00:05.499999999Z", "321"),
            // No zone means UTC; other zones are understood, and a `+` that became a space.
            ("from_date=2026-06-19T10:00:06", "76"),
            ("from_date=2026-06-19T12:00:06+02:00", "76"),
            ("from_date=2026-06-19T12:00:06 02:00", "76"),
            ("from_date=2026-06-19T02:30:06-07:30", "76"),
            // Lower bound above upper.
            ("from_date=2026-06-20&to_date=2026-06-19", ""),
        ];
        for (text, ids) in expected {
            assert_eq!(campaign_ids(&model, text).concat(), ids, "{text}");
        }
    }

    #[test]
    fn bounds_of_the_contact_timeline_are_whole_days() {
        let open = |id: &str, at: &str| event(id, "open", &json!({ "contact_id": JANE, "occurred_at": at }));
        let model = model_of(&[
            open("1", "2026-06-18T23:59:59.999Z"),
            open("2", "2026-06-19T00:00:00Z"),
            open("3", "2026-06-19T23:59:59.999999Z"),
            // The day is the one in UTC.
            open("4", "2026-06-19T23:00:00-02:00"),
        ]);
        for (text, count) in [
            ("from=2026-06-19", 3),
            ("to=2026-06-19", 3),
            ("from=2026-06-19&to=2026-06-19", 2),
            ("from=2026-06-20&to=2026-06-20", 1),
            ("from=2026-06-20&to=2026-06-19", 0),
        ] {
            assert_eq!(contact_rows(&model, text).len(), count, "{text}");
        }
    }

    #[test]
    fn times_are_shown_in_utc_and_whole_seconds() {
        let shown = |at: &str| {
            let more = json!({ "contact_id": JANE, "campaign_id": "c", "occurred_at": at });
            let model = model_of(&[event("1", "open", &more)]);
            let (row, other) = (&campaign_rows(&model, "")[0], &contact_rows(&model, "")[0]);
            assert_eq!(row["timestamp"], other["happened_at"]);
            row["timestamp"].clone()
        };
        assert_eq!(shown("2026-04-17T14:23:05Z"), "2026-04-17T14:23:05Z");
        assert_eq!(shown("2026-04-17T16:23:05.999999999+02:00"), "2026-04-17T14:23:05Z");
        assert_eq!(shown("2026-02-28T23:59:59.5-05:45"), "2026-03-01T05:44:59Z");
    }

    #[test]
    fn list_management_clicks_are_on_neither_endpoint() {
        let click = |id: &str, link: Value| {
            event(
                id,
                "click",
                &json!({ "contact_id": JANE, "campaign_id": "c", "link": link,
                "url": "https://blog.example/how-to-unsubscribe" }),
            )
        };
        let model = model_of(&[
            click("1", json!("content")),
            click("2", json!("unsubscribe")),
            click("3", json!("preferences")),
            event(
                "4",
                "click",
                &json!({ "contact_id": JANE, "campaign_id": "c",
                "url": "https://x.example/unsubscribe" }),
            ),
        ]);
        assert_eq!(campaign_ids(&model, ""), ["4", "1"]);
        assert_eq!(contact_rows(&model, "").len(), 2);
    }

    #[test]
    fn references_stand_on_the_rows_that_they_apply_to() {
        let all = json!({ "contact_id": JANE, "campaign_id": "c", "automation_id": "x", "list_id": "l" });
        let sent = event(
            "0",
            "send",
            &json!({ "contact_id": JANE, "campaign_id": "c", "automation_id": "x",
            "list_id": "l", "message_id": "m", "occurred_at": "2026-06-01T00:00:00Z" }),
        );
        for (raw_type, has_list) in
            [("send", false), ("subscribe", true), ("unsubscribe", true), ("global_unsubscribe", false)]
        {
            // What an event carries, and what its send carries for it.
            for event in [event("1", raw_type, &all), event("1", raw_type, &json!({ "message_id": "m" }))] {
                let is_other_send = raw_type == "send" && event.get("message_id").is_some();
                if is_other_send {
                    continue;
                }
                let row = &contact_rows(&model_of(&[sent.clone(), event]), "")[0];
                let reference = |id: &str| json!({ "uuid": id, "name": null });
                assert_eq!(row["campaign"], reference("c"));
                assert_eq!(row["automation"], reference("x"));
                assert_eq!(row["list"], if has_list { reference("l") } else { Value::Null }, "{raw_type}");
            }
        }
        let row = &contact_rows(&model_of(&[event("1", "subscribe", &json!({ "contact_id": JANE }))]), "")[0];
        assert_eq!([&row["campaign"], &row["automation"], &row["list"]], [&Value::Null; 3]);
    }

    #[test]
    fn names_are_the_current_or_the_last() {
        let mut model = model_of(&[event("1", "open", &json!({ "contact_id": JANE, "campaign_id": JOHN }))]);
        let name = |model: &Model| contact_rows(model, "")[0]["campaign"]["name"].clone();
        assert_eq!(name(&model), Value::Null);
        let mut step = |fields: Value| {
            refer(&mut model, &fields);
            name(&model)
        };
        let id = JOHN.to_uppercase();
        let campaign = |account: &str, name: Value| {
            let kind = "campaign";
            json!({ "kind": kind, "account_id": account, "id": id, "name": name })
        };
        assert_eq!(step(json!({ "kind": "campaign", "account_id": "a", "id": JOHN })), Value::Null);
        assert_eq!(step(campaign("a", json!("Spring"))), "Spring");
        assert_eq!(step(campaign("a", json!("Sommer"))), "Sommer");
        assert_eq!(step(campaign("b", json!("foreign"))), "Sommer");
        assert_eq!(
            step(json!({ "kind": "automation", "account_id": "a", "id": JOHN, "name": "other" })),
            "Sommer"
        );
        assert_eq!(step(json!({ "kind": "campaign", "account_id": "a", "id": JOHN })), "Sommer");
        model.take(&Record::reference_deletion("campaign", "a", JOHN), now());
        assert_eq!(name(&model), "Sommer");
        refer(&mut model, &campaign("a", json!("again")));
        assert_eq!(name(&model), "again");
    }

    #[test]
    fn deletions_are_the_same_from_the_topic_and_over_http() {
        let deletion = Record::reference_deletion("list", "a", "l");
        let posted = Record { value: deletion.post_body(), ..deletion.clone() };
        for record in [deletion, posted] {
            assert_eq!(Model::new(180).take(&record, now()), Taken::Reference);
        }
    }

    #[test]
    fn email_is_the_events_else_the_sends_else_the_references() {
        let send = event(
            "0",
            "send",
            &json!({ "contact_id": JANE, "campaign_id": "c", "message_id": "m",
            "email": "sent@example.com", "occurred_at": "2026-06-01T00:00:00Z" }),
        );
        let own = event("1", "open", &json!({ "message_id": "m", "email": "own@example.com" }));
        let sent = event("1", "open", &json!({ "message_id": "m" }));
        let bare = event("1", "open", &json!({ "contact_id": JANE, "campaign_id": "c" }));
        let email = |event: &Value, reference: Option<&str>| {
            let mut model = model_of(&[send.clone(), event.clone()]);
            for email in ["old@example.com"].into_iter().chain(reference) {
                if reference.is_some() {
                    let fields = json!({ "kind": "contact", "account_id": "a", "id": JANE, "email": email });
                    refer(&mut model, &fields);
                }
            }
            campaign_rows(&model, "")[0]["email"].clone()
        };
        assert_eq!(email(&own, Some("now@example.com")), "own@example.com");
        assert_eq!(email(&sent, Some("now@example.com")), "sent@example.com");
        assert_eq!(email(&bare, Some("now@example.com")), "now@example.com");
        assert_eq!(email(&bare, None), Value::Null);
    }

    #[test]
    fn metadata_and_detail_of_clicks_and_bounces() {
        let shown = |raw_type: &str, more: &Value| {
            let mut event = event("1", raw_type, more);
            event["contact_id"] = json!(JANE);
            event["campaign_id"] = json!("c");
            let model = model_of(&[event]);
            (campaign_rows(&model, "")[0]["metadata"].clone(), contact_rows(&model, "")[0]["detail"].clone())
        };
        let url = "https://x.example/ä?b=c";
        assert_eq!(
            shown("click", &json!({ "url": url, "metadata": { "ip_country": "DE" } })),
            (json!({ "ip_country": "DE", "url": url }), json!({ "url": url }))
        );
        assert_eq!(
            shown("bounce", &json!({})),
            (json!({ "bounce_type": "soft" }), json!({ "type": "soft" }))
        );
        assert_eq!(
            shown("bounce", &json!({ "bounce": { "type": "hard", "reason": "gone" } })),
            (json!({ "bounce_type": "hard", "reason": "gone" }), json!({ "type": "hard" }))
        );
        assert_eq!(
            shown("bounce", &json!({ "bounce": { "reason": "full" } })),
            (json!({ "bounce_type": "soft", "reason": "full" }), json!({ "type": "soft" }))
        );
        assert_eq!(shown("open", &json!({})), (json!({}), Value::Null));
        let nested = json!({ "a": { "b": [1, null, "é"] } });
        assert_eq!(shown("open", &json!({ "metadata": nested })), (nested, Value::Null));
    }

    #[test]
    fn purchase_without_variant_has_a_null_and_never_an_amount() {
        let purchase = json!({ "order_uuid": JANE, "product_uuid": JOHN, "product_name": "Pro",
            "is_subscription": false, "amount": 1, "currency": "EUR" });
        let model = model_of(&[event("1", "purchase", &json!({ "contact_id": JANE, "purchase": purchase }))]);
        let detail = json!({ "order_uuid": JANE, "product_uuid": JOHN, "product_name": "Pro",
            "variant_name": null, "is_subscription": false });
        assert_eq!(contact_rows(&model, "")[0]["detail"], detail);
    }

    // The contract, section 2: raw events.

    #[test]
    fn repeats_change_nothing_and_identity_is_account_id_and_time() {
        let first = event("1", "open", &json!({ "contact_id": JANE, "campaign_id": "c" }));
        let mut model = model_of(std::slice::from_ref(&first));
        let mut take = |more: Value| {
            let mut other = first.clone();
            for (name, value) in more.as_object().into_iter().flatten() {
                other[name] = value.clone();
            }
            model.take(&Record::event(&other), now())
        };
        assert_eq!(take(json!({})), Taken::Repeat);
        assert_eq!(take(json!({ "occurred_at": "2026-06-20T14:00:00.000+02:00" })), Taken::Repeat);
        assert_eq!(take(json!({ "occurred_at": "2026-06-20T12:00:00.001Z" })), Taken::Kept);
        assert_eq!(take(json!({ "account_id": "b" })), Taken::Kept);
        assert_eq!(take(json!({ "id": "2" })), Taken::Kept);
        assert_eq!(campaign_ids(&model, ""), ["1", "2", "1"]);
    }

    #[test]
    fn send_supplies_what_its_events_leave_out_in_either_order() {
        let send = event(
            "0",
            "send",
            &json!({ "contact_id": JANE, "campaign_id": "c", "automation_id": "x",
            "list_id": "l", "step_id": "s", "email": "e@example.com", "message_id": "m" }),
        );
        let open = event("1", "open", &json!({ "message_id": "m" }));
        let own = event(
            "2",
            "unsubscribe",
            &json!({ "message_id": "m", "automation_id": "own", "step_id": "own" }),
        );
        let foreign = event("3", "open", &json!({ "message_id": "m", "account_id": "b" }));
        let mut events = [send, open, own, foreign];
        for _ in 0..events.len() {
            events.rotate_left(1);
            let model = model_of(&events);
            let rows = campaign_rows(&model, "");
            assert_eq!(column(&rows, "id"), ["2", "1", "0"]);
            assert_eq!(column(&rows, "step_id"), ["own", "s", "s"]);
            assert_eq!(column(&rows, "email"), ["e@example.com"; 3]);
            assert_eq!(column(&rows, "contact_id"), [JANE; 3]);
            let rows = contact_rows(&model, "");
            assert_eq!(rows[0]["automation"]["uuid"], "own");
            assert_eq!(rows[1]["automation"]["uuid"], "x");
            assert_eq!(rows[0]["list"]["uuid"], "l");
        }
    }

    #[test]
    fn own_contact_and_campaign_win_over_the_sends() {
        let model = model_of(&[
            event("0", "send", &json!({ "contact_id": JANE, "campaign_id": "c", "message_id": "m" })),
            event("1", "open", &json!({ "contact_id": JOHN, "message_id": "m" })),
            event("2", "open", &json!({ "campaign_id": "d", "message_id": "m" })),
        ]);
        assert_eq!(campaign_ids(&model, ""), ["1", "0"]);
        assert_eq!(column(&campaign_rows(&model, ""), "contact_id"), [JOHN, JANE]);
        assert_eq!(column(&contact_rows(&model, ""), "uuid"), ["2", "0"].map(shown_uuid));
    }

    #[test]
    fn event_whose_send_is_missing_shows_where_it_can() {
        let model = model_of(&[
            event("1", "open", &json!({ "message_id": "m" })),
            event("2", "open", &json!({ "message_id": "m", "campaign_id": "c" })),
            event("3", "open", &json!({ "message_id": "m", "contact_id": JANE })),
        ]);
        let rows = campaign_rows(&model, "");
        assert_eq!((rows.len(), &rows[0]["contact_id"], &rows[0]["email"]), (1, &Value::Null, &Value::Null));
        let rows = contact_rows(&model, "");
        assert_eq!((rows.len(), &rows[0]["campaign"]), (1, &Value::Null));
    }

    #[test]
    fn events_that_break_a_rule_are_refused_and_change_nothing() {
        let open = |more: Value| {
            let mut event = event("1", "open", &json!({ "contact_id": JANE }));
            for (name, value) in more.as_object().into_iter().flatten() {
                event[name] = value.clone();
            }
            event
        };
        let without = |name: &str| {
            let mut event = open(json!({}));
            event.as_object_mut().expect("an object").remove(name);
            event
        };
        for name in ["id", "account_id", "type", "occurred_at", "contact_id"] {
            assert!(refused(&without(name)), "{name}");
        }
        for more in [
            json!({ "id": "" }),
            json!({ "id": "x".repeat(65) }),
            json!({ "id": "a b" }),
            json!({ "id": 1 }),
            json!({ "account_id": "a:b" }),
            json!({ "type": "sneeze" }),
            json!({ "occurred_at": "2026-06-20T12:00:00" }),
            json!({ "occurred_at": "2026-06-20" }),
            json!({ "occurred_at": "2026-06-31T12:00:00Z" }),
            json!({ "occurred_at": "2026-06-22T12:00:01Z" }),
            json!({ "contact_id": "jane" }),
            json!({ "campaign_id": "a/b" }),
            json!({ "message_id": "" }),
            json!({ "type": "click" }),
            json!({ "type": "click", "url": "https://x.example", "link": "footer" }),
            json!({ "type": "bounce", "bounce": { "type": "medium" } }),
            json!({ "type": "bounce", "bounce": "hard" }),
            json!({ "type": "purchase" }),
            json!({ "type": "purchase", "purchase": { "order_uuid": JANE } }),
            json!({ "metadata": [] }),
            json!({ "metadata": { "x": "x".repeat(8 * 1024) } }),
            json!({ "padding": "x".repeat(64 * 1024) }),
        ] {
            assert!(refused(&open(more.clone())), "{more}");
        }
        for bytes in [b"".as_slice(), b"{", b"[]", b"\"open\"", b"\xff"] {
            let record = Record { value: Some(bytes.to_vec()), ..Record::event(&open(json!({}))) };
            let mut model = Model::new(180);
            assert!(matches!(model.take(&record, now()), Taken::Refused(_)));
            assert!(model.timelines().is_empty());
        }
    }

    #[test]
    fn events_within_the_rules_are_taken() {
        for more in [
            json!({ "id": "x".repeat(64) }),
            json!({ "id": "a_B.c:d-9" }),
            json!({ "occurred_at": "2026-06-22T12:00:00Z" }),
            json!({ "occurred_at": "2026-06-20T12:00:00.123456789-00:00" }),
            json!({ "contact_id": Value::Null, "message_id": "m" }),
            json!({ "metadata": { "x": "x".repeat(8 * 1000) } }),
            json!({ "padding": "x".repeat(60 * 1024) }),
            json!({ "unknown": { "field": 1 } }),
        ] {
            let mut event = event("1", "open", &json!({ "contact_id": JANE }));
            for (name, value) in more.as_object().into_iter().flatten() {
                event[name] = value.clone();
            }
            assert!(!refused(&event), "{more}");
        }
    }

    // The model itself.

    #[test]
    fn all_timelines_at_once_are_the_timelines_one_by_one() {
        let history = History::generate(4, &Knobs::sized(400), now());
        let mut model = Model::new(180);
        for record in &history.records {
            model.take(record, now());
        }
        let timelines = model.timelines();
        assert!(timelines.len() > 30, "{}", timelines.len());
        for ((endpoint, account, id), timeline) in &timelines {
            for page in 1..4 {
                let query = Query::new().with("per_page", 20).with("page", page);
                let one = model.timeline(*endpoint, account, id).page(&query, now());
                assert_eq!(timeline.page(&query, now()), one);
            }
        }
    }

    /// "Events and references may arrive in any order, and the answers end up the same": true of
    /// the model for events, and for the references of different things.
    #[test]
    fn order_of_arrival_does_not_matter() {
        let history = History::generate(6, &Knobs::sized(400), now());
        let (mut forwards, mut backwards) = (Model::new(180), Model::new(180));
        let is_event = |record: &&Record| record.topic == Topic::Events;
        for record in history.records.iter().filter(is_event) {
            forwards.take(record, now());
        }
        for record in history.records.iter().filter(|record| !is_event(record)) {
            forwards.take(record, now());
            backwards.take(record, now());
        }
        for record in history.records.iter().rev().filter(is_event) {
            backwards.take(record, now());
        }
        let (forwards, backwards) = (forwards.timelines(), backwards.timelines());
        assert!(forwards.keys().eq(backwards.keys()));
        for (place, timeline) in &forwards {
            let query = Query::new().with("per_page", 100);
            let later = now() + TimeDelta::minutes(5);
            assert_eq!(timeline.page(&query, later), backwards[place].page(&query, later), "{place:?}");
        }
    }
}
