//! Random histories: what senders might publish in the worst half-year, reproducible from a seed.
//!
//! A history is made to hurt. Few campaigns and contacts collide, many events share a millisecond,
//! the same ids turn up in several accounts and in either case, a `send` comes before its opens, long
//! after them or never, and repeats arrive at any distance. It never leaves the contract, though: no
//! event contradicts an earlier one of the same identity, no message has two different sends, and
//! every time is at least an hour away from the edge of retention. Where the contract leaves an
//! answer open, [`Knobs::disputed`] decides whether such cases turn up.
//!
//! Each message or loose event is a `Draft`, which is spelled as JSON (order of fields, zone, case)
//! and put somewhere in the publish order; flawed events ride along and must change nothing.

use std::collections::{BTreeSet, HashSet};

use chrono::{DateTime, Utc};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::model::{Endpoint, TYPES};

const NS_PER_MS: i64 = 1_000_000;
const NS_PER_S: i64 = 1_000_000_000;
const NS_PER_HOUR: i64 = 3600 * NS_PER_S;
const NS_PER_DAY: i64 = 24 * NS_PER_HOUR;
/// How far times keep from every edge: an hour, and some seconds for rounding.
const MARGIN_NS: i64 = NS_PER_HOUR + 100 * NS_PER_S;

/// The topic that a record is published to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// Raw events, `mail.events`.
    Events,
    /// References, `mail.references`.
    References,
}

/// One message on one of the two topics.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The account whose key posts it.
    pub account: String,
    /// Where it goes.
    pub topic: Topic,
    /// A reference's key, or the key that is suggested for an event.
    pub key: Option<String>,
    /// The bytes of the message; none deletes a reference.
    pub value: Option<Vec<u8>>,
    /// What is wrong with it, if anything is: then it changes nothing.
    pub flaw: Option<&'static str>,
    /// Whether it means the same when posted to the intake (a message that is no JSON, or that names
    /// no account, does not).
    pub is_postable: bool,
}

impl Record {
    /// A raw event, with the recommended key.
    #[must_use]
    pub fn event(fields: &Value) -> Self {
        let text = |name: &str| fields[name].as_str().map(str::to_owned);
        Self {
            account: text("account_id").unwrap_or_default(),
            topic: Topic::Events,
            key: text("campaign_id").or_else(|| text("contact_id")),
            value: Some(fields.to_string().into_bytes()),
            flaw: None,
            is_postable: true,
        }
    }

    /// A reference that is created or updated: `fields` holds kind, account_id, id, and name or email.
    #[must_use]
    pub fn reference(fields: &Value) -> Self {
        let text = |name: &str| fields[name].as_str().unwrap_or_default();
        Self {
            value: Some(fields.to_string().into_bytes()),
            ..Self::reference_deletion(text("kind"), text("account_id"), text("id"))
        }
    }

    /// A reference that is deleted.
    #[must_use]
    pub fn reference_deletion(kind: &str, account: &str, id: &str) -> Self {
        Self {
            account: account.to_owned(),
            topic: Topic::References,
            key: Some(format!("{kind}:{account}:{id}")),
            value: None,
            flaw: None,
            is_postable: true,
        }
    }

    /// The JSON that posts the record to the intake; `None` if it cannot go that way.
    #[must_use]
    pub fn post_body(&self) -> Option<Vec<u8>> {
        if !self.is_postable {
            return None;
        }
        if self.value.is_some() {
            return self.value.clone();
        }
        // Kind and account have no colon, so the key splits in one way only.
        let mut parts = self.key.as_deref()?.splitn(3, ':');
        let (kind, account, id) = (parts.next()?, parts.next()?, parts.next()?);
        let deletion = json!({ "kind": kind, "account_id": account, "id": id, "deleted": true });
        Some(deletion.to_string().into_bytes())
    }
}

/// What was published, in the order it was published.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    /// The accounts.
    pub accounts: Vec<String>,
    /// The records.
    pub records: Vec<Record>,
}

/// How large a history is and what it is made of. Shares are from 0 to 1.
#[derive(Clone, Debug)]
pub struct Knobs {
    /// What the accounts' names start with: histories of one server are told apart by it.
    pub account_prefix: String,
    /// How many accounts there are; they share most of their ids.
    pub accounts: usize,
    /// How many campaigns each account has.
    pub campaigns: usize,
    /// How many contacts each account has.
    pub contacts: usize,
    /// How many different valid events there are (repeats, flawed ones and references come on top).
    pub events: usize,
    /// The share of events that go to the first campaign of the first account, whatever else.
    pub giant: f64,
    /// The share of events that arrive more than once.
    pub repeated: f64,
    /// Flawed events for each valid one.
    pub flawed: f64,
    /// The share of messages that are past retention already.
    pub expired: f64,
    /// The share of times that fall on one of a few milliseconds.
    pub tied: f64,
    /// The retention that the events are to keep clear of, in days.
    pub retention_days: u32,
    /// Whether there are cases too for which the contract leaves the answer open.
    pub disputed: bool,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            account_prefix: "acct".to_owned(),
            accounts: 3,
            campaigns: 6,
            contacts: 12,
            events: 1000,
            giant: 0.0,
            repeated: 0.1,
            flawed: 0.05,
            expired: 0.05,
            tied: 0.35,
            retention_days: 180,
            disputed: false,
        }
    }
}

impl Knobs {
    /// A history of so many events, with as many campaigns and contacts as keep it crowded.
    #[must_use]
    pub fn sized(events: usize) -> Self {
        let root = events.isqrt();
        Self {
            campaigns: (root / 6).clamp(2, 60),
            contacts: (root / 3).clamp(3, 1500),
            events,
            ..Self::default()
        }
    }

    /// The same in accounts whose names start with `prefix`, which is to be fit for an account's id.
    #[must_use]
    pub fn in_accounts(self, prefix: &str) -> Self {
        Self { account_prefix: prefix.to_owned(), ..self }
    }

    /// The same with a campaign that takes so large a share of all events.
    #[must_use]
    pub fn with_giant(self, share: f64) -> Self {
        Self { giant: share, ..self }
    }
}

impl History {
    /// The history of a seed. All times are relative to `now`, from years before it to 20 h after.
    #[must_use]
    pub fn generate(seed: u64, knobs: &Knobs, now: DateTime<Utc>) -> Self {
        let mut generator = Generator::new(seed, knobs, now);
        generator.publish_references();
        while generator.events < knobs.events {
            if generator.chance(0.6) {
                generator.publish_message();
            } else {
                generator.publish_loose_event();
            }
            if generator.chance(knobs.flawed) {
                generator.publish_flawed_event();
            }
        }
        generator.finish()
    }
}

/// The ids of an account.
struct Pool {
    account: String,
    campaigns: Vec<String>,
    automations: Vec<String>,
    lists: Vec<String>,
    steps: Vec<String>,
    contacts: Vec<String>,
    /// Counts messages and events, so that the same ids turn up in every account.
    serial: usize,
    event_ids: Vec<String>,
}

/// Whether events fall within retention.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Era {
    Live,
    Expired,
}

/// An event before it is spelled: fields in plain form, the time apart.
#[derive(Clone)]
struct Draft {
    account: usize,
    fields: Map<String, Value>,
    at_ns: i64,
    era: Era,
}

struct Generator<'a> {
    rng: StdRng,
    knobs: &'a Knobs,
    now_ns: i64,
    pools: Vec<Pool>,
    /// Milliseconds that many events share.
    tied_ms: Vec<i64>,
    /// Account, id and millisecond of every event so far.
    identities: HashSet<(usize, String, i64)>,
    events: usize,
    /// Each record with its place in the publish order, from 0 to 1.
    placed: Vec<(f64, Record)>,
    /// What exists beyond doubt, and what only disputed events speak of.
    settled: HashSet<(usize, Endpoint, String)>,
    doubtful: BTreeSet<(usize, Endpoint, String)>,
}

impl<'a> Generator<'a> {
    fn new(seed: u64, knobs: &'a Knobs, now: DateTime<Utc>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let now_ns = now.timestamp_millis() * NS_PER_MS;
        let pools = pools(&mut rng, knobs);
        let retention_ns = i64::from(knobs.retention_days) * NS_PER_DAY;
        let oldest_ns = now_ns - retention_ns + MARGIN_NS;
        let tied = knobs.events.isqrt() / 4 + 2;
        let tied_ms = (0..tied).map(|_| rng.random_range(oldest_ns..now_ns) / NS_PER_MS).collect();
        Self {
            rng,
            knobs,
            now_ns,
            pools,
            tied_ms,
            identities: HashSet::new(),
            events: 0,
            placed: Vec::new(),
            settled: HashSet::new(),
            doubtful: BTreeSet::new(),
        }
    }

    fn finish(mut self) -> History {
        if !self.knobs.disputed {
            self.settle_doubts();
        }
        self.placed.sort_by(|a, b| a.0.total_cmp(&b.0));
        History {
            accounts: self.pools.into_iter().map(|pool| pool.account).collect(),
            records: self.placed.into_iter().map(|(_, record)| record).collect(),
        }
    }

    /// Gives everything of which it is disputed whether it exists an event that leaves no doubt.
    fn settle_doubts(&mut self) {
        for (account, endpoint, id) in std::mem::take(&mut self.doubtful) {
            if self.settled.contains(&(account, endpoint, id.clone())) {
                continue;
            }
            let mut draft = self.draft(account, "delivery", Era::Live);
            let contact = if endpoint == Endpoint::Contact { id.clone() } else { self.contact(account) };
            draft.set("contact_id", contact);
            if endpoint == Endpoint::Campaign {
                draft.set("campaign_id", id);
            }
            let position = self.rng.random();
            self.publish(draft, position);
        }
    }

    // What is published.

    /// A `send` with what followed it, tied by a message id.
    fn publish_message(&mut self) {
        let account = self.account();
        let era = if self.chance(self.knobs.expired) { Era::Expired } else { Era::Live };
        let message = self.message_id(account);
        let mut send = self.draft(account, "send", era);
        send.set("message_id", message.clone());
        let contact = self.contact(account);
        send.set("contact_id", contact);
        self.add_references(&mut send, 0.9);
        let position = self.position(send.at_ns);
        let follower_count = self.rng.random_range(0..=6);
        for _ in 0..follower_count {
            let follower = self.follower(&send, &message);
            let delay = if self.chance(0.5) { 0.001 } else { 1.0 - position };
            let follower_position = position + self.rng.random::<f64>() * delay;
            self.publish(follower, follower_position);
        }
        match self.rng.random_range(0..10) {
            // It never comes.
            0 => {}
            // It comes at any time, so perhaps after what followed it.
            1..=3 => {
                let late = self.rng.random_range(position..=1.0);
                self.publish(send, late);
            }
            _ => self.publish(send, position),
        }
    }

    /// Something that happened to a message; often it says no more than which message.
    fn follower(&mut self, send: &Draft, message: &str) -> Draft {
        const FOLLOWERS: [&str; 14] = [
            "delivery",
            "delivery",
            "open",
            "open",
            "open",
            "click",
            "click",
            "click",
            "bounce",
            "reply",
            "complaint",
            "unsubscribe",
            "global_unsubscribe",
            "automation_unsubscribe",
        ];
        let raw_type = if self.chance(0.85) { self.pick(&FOLLOWERS) } else { self.any_type_but_send() };
        // A live event of an expired send is disputed: a dropped send may or may not supply.
        let is_expired = send.era == Era::Expired && !(self.knobs.disputed && self.chance(0.3));
        let era = if is_expired || self.chance(0.02) { Era::Expired } else { Era::Live };
        let mut draft = self.draft(send.account, raw_type, era);
        draft.set("message_id", message);
        match self.rng.random_range(0..10) {
            // Its own contact, or campaign, or all, overriding the send's now and then.
            0 => draft.copy("contact_id", send),
            1 => draft.copy("campaign_id", send),
            2 => {
                draft.copy("contact_id", send);
                draft.copy("campaign_id", send);
                draft.copy("email", send);
            }
            3 => {
                let contact = self.contact(send.account);
                draft.set("contact_id", contact);
                self.add_references(&mut draft, 0.5);
            }
            4 => self.add_references(&mut draft, 0.3),
            // Nothing of its own.
            _ => {}
        }
        draft
    }

    /// An event that names all it has to do with, without a message id.
    fn publish_loose_event(&mut self) {
        let draft = self.loose_event();
        let position = self.position(draft.at_ns);
        if self.chance(0.03) {
            self.echo_in_other_account(&draft);
        }
        self.publish(draft, position);
    }

    fn loose_event(&mut self) -> Draft {
        let account = self.account();
        let raw_type = if self.chance(0.1) { "send" } else { self.any_type_but_send() };
        let era = if self.chance(self.knobs.expired) { Era::Expired } else { Era::Live };
        let mut draft = self.draft(account, raw_type, era);
        let contact = self.contact(account);
        draft.set("contact_id", contact);
        self.add_references(&mut draft, 0.75);
        draft
    }

    /// The same event under the same id at the same time, but another account's.
    fn echo_in_other_account(&mut self, draft: &Draft) {
        let account = self.rng.random_range(0..self.pools.len());
        let mut echo = Draft { account, ..draft.clone() };
        echo.set("account_id", self.pools[account].account.clone());
        if self.claim_identity(&echo) {
            let position = self.rng.random();
            self.publish(echo, position);
        }
    }

    /// Publishes an event, and now and then publishes it again.
    fn publish(&mut self, mut draft: Draft, position: f64) {
        self.events += 1;
        self.note_existence(&draft);
        self.spell_null(&mut draft);
        let record = self.event_record(&draft);
        let mut repeats = 0;
        while repeats < 4 && self.chance(self.knobs.repeated) {
            repeats += 1;
            let distance = if self.chance(0.5) { 0.001 } else { 1.0 - position };
            let repeat = self.repeat(&draft, &record);
            let repeat_position = position + self.rng.random::<f64>() * distance;
            self.placed.push((repeat_position, repeat));
        }
        self.placed.push((position, record));
    }

    /// A repeat: mostly byte for byte, at times the same event in another spelling; now and then under
    /// another key.
    fn repeat(&mut self, draft: &Draft, record: &Record) -> Record {
        let mut repeat = if self.chance(0.8) { record.clone() } else { self.event_record(draft) };
        match self.rng.random_range(0..10) {
            0 => repeat.key = None,
            1 => repeat.key = Some(format!("moved-{}", self.rng.random_range(0..100))),
            _ => {}
        }
        repeat
    }

    /// Names, renames and deletions, of most of what there is.
    fn publish_references(&mut self) {
        for account in 0..self.pools.len() {
            let pool = &self.pools[account];
            let kinds: [(&'static str, Vec<String>); 4] = [
                ("campaign", pool.campaigns.clone()),
                ("automation", pool.automations.clone()),
                ("list", pool.lists.clone()),
                ("contact", pool.contacts.clone()),
            ];
            for (kind, ids) in kinds {
                for id in ids {
                    if self.chance(0.7) {
                        self.publish_reference(account, kind, &id);
                    }
                }
            }
        }
    }

    fn publish_reference(&mut self, account: usize, kind: &'static str, id: &str) {
        // One spelling for all: the broker knows the key by its bytes.
        let id = self.recased(id);
        let account_id = self.pools[account].account.clone();
        let count = self.rng.random_range(1..=4);
        let mut positions: Vec<f64> = (0..count).map(|_| self.rng.random()).collect();
        positions.sort_by(f64::total_cmp);
        for (version, position) in positions.into_iter().enumerate() {
            let may_delete = self.knobs.disputed || (version > 0 && kind != "contact");
            let record = if may_delete && self.chance(0.25) {
                Record::reference_deletion(kind, &account_id, &id)
            } else {
                let mut fields = json!({ "kind": kind, "account_id": account_id, "id": id });
                if kind == "contact" && self.chance(0.8) {
                    fields["email"] = json!(self.email());
                } else if kind != "contact" && self.chance(0.85) {
                    fields["name"] = json!(self.name(version));
                }
                self.settle(account, kind, &id);
                Record::reference(&fields)
            };
            self.placed.push((position, record));
        }
    }

    /// An event that breaks one rule, and would show if it were taken in all the same.
    fn publish_flawed_event(&mut self) {
        let flaw = self.pick(&FLAWS);
        let mut draft = self.loose_event();
        draft.set("type", flaw.raw_type);
        self.add_type_fields(&mut draft, flaw.raw_type);
        let mut record = self.event_record(&draft);
        let mut value = Value::Object(draft.spelled(&mut self.rng));
        (flaw.spoil)(&mut value, self.now_ns);
        record.value = Some(match flaw.bytes {
            None => value.to_string().into_bytes(),
            Some(bytes) => bytes(&value),
        });
        record.flaw = Some(flaw.name);
        record.is_postable = flaw.is_postable;
        let position = self.rng.random();
        self.placed.push((position, record));
    }

    // What exists.

    fn note_existence(&mut self, draft: &Draft) {
        // Whether events that are dropped as expired or filtered make their campaign and contact
        // exist is disputed.
        let link = draft.fields.get("link").and_then(Value::as_str).unwrap_or("content");
        let is_settled = draft.era == Era::Live && link == "content";
        for (name, endpoint) in [("campaign_id", Endpoint::Campaign), ("contact_id", Endpoint::Contact)] {
            if let Some(id) = draft.fields.get(name).and_then(Value::as_str) {
                let place = (draft.account, endpoint, id.to_owned());
                if is_settled {
                    self.settled.insert(place);
                } else {
                    self.doubtful.insert(place);
                }
            }
        }
    }

    fn settle(&mut self, account: usize, kind: &str, id: &str) {
        let endpoint = match kind {
            "campaign" => Endpoint::Campaign,
            "contact" => Endpoint::Contact,
            _ => return,
        };
        self.settled.insert((account, endpoint, lower_uuid(id)));
    }

    // What an event consists of.

    /// An event of a type with an identity of its own, without contact or references.
    fn draft(&mut self, account: usize, raw_type: &'static str, era: Era) -> Draft {
        loop {
            let at_ns = self.instant(era);
            let id = self.event_id(account);
            let mut draft = Draft { account, fields: Map::new(), at_ns, era };
            draft.set("id", id);
            if self.claim_identity(&draft) {
                draft.set("account_id", self.pools[account].account.clone());
                draft.set("type", self.type_name(raw_type));
                self.add_type_fields(&mut draft, raw_type);
                self.add_metadata(&mut draft, raw_type);
                return draft;
            }
        }
    }

    /// False if the account has an event of this id in this millisecond.
    fn claim_identity(&mut self, draft: &Draft) -> bool {
        let id = draft.fields["id"].as_str().unwrap_or_default();
        self.identities.insert((draft.account, lower_uuid(id), draft.at_ns.div_euclid(NS_PER_MS)))
    }

    fn type_name(&mut self, raw_type: &str) -> String {
        let shown = TYPES.iter().find(|(raw, _)| *raw == raw_type).map_or(raw_type, |(_, shown)| *shown);
        if self.chance(0.25) { shown.to_owned() } else { raw_type.to_owned() }
    }

    fn any_type_but_send(&mut self) -> &'static str {
        TYPES[self.rng.random_range(1..TYPES.len())].0
    }

    fn add_type_fields(&mut self, draft: &mut Draft, raw_type: &str) {
        match raw_type {
            "click" => {
                let n = self.rng.random_range(0..50);
                // Never guessed from a word in a URL: a post about unsubscribing is content.
                let url =
                    self.pick(&["https://shop.example/p/", "https://blog.example/how-to-unsubscribe?n="]);
                draft.set("url", format!("{url}{n}"));
                if self.chance(0.4) {
                    let link = self.pick(&["content", "unsubscribe", "preferences"]);
                    draft.set("link", link);
                }
            }
            "bounce" => {
                let bounce = [
                    json!({ "type": "hard" }),
                    json!({ "type": "soft" }),
                    json!({ "type": "hard", "reason": "550 5.1.1 user unknown" }),
                    json!({ "reason": "450 mailbox full – später" }),
                    json!({}),
                ];
                if self.chance(0.8) {
                    let bounce = bounce[self.rng.random_range(0..bounce.len())].clone();
                    draft.set("bounce", bounce);
                }
            }
            "purchase" => {
                let purchase = self.purchase();
                draft.set("purchase", purchase);
            }
            _ => {}
        }
    }

    fn purchase(&mut self) -> Value {
        let mut purchase = json!({
            "order_uuid": self.uuid(),
            "product_uuid": self.uuid(),
            "product_name": self.pick(&["Pro plan", "Käsekuchen", "T-shirt \"XL\""]),
            "is_subscription": self.chance(0.5),
        });
        if self.chance(0.6) {
            purchase["variant_name"] = json!(self.pick(&["annual", "monthly", "blau"]));
        }
        if self.chance(0.6) {
            purchase["amount"] = json!(self.rng.random_range(1..100_000));
            purchase["currency"] = json!("EUR");
        }
        purchase
    }

    fn add_metadata(&mut self, draft: &mut Draft, raw_type: &str) {
        let metadata = match self.rng.random_range(0..8) {
            0..=2 => return,
            3 => json!({}),
            4 | 5 => json!({ "user_agent": "Mozilla/5.0 (X11; Linux)", "ip_country": "DE" }),
            6 => json!({
                "nested": { "list": [1, 2.5, -3, null, true, { "deep": [[]] }], "empty": {} },
                "größe": "日本語 🐌 \u{0007} \" \\ /",
                "": "no name",
            }),
            // Names that other types add themselves are ordinary names here.
            _ if !["click", "bounce"].contains(&raw_type) => {
                json!({ "url": "https://x.example", "reason": "asked to", "n": self.rng.random::<u32>() })
            }
            _ => json!({ "n": self.rng.random::<u32>() }),
        };
        draft.set("metadata", metadata);
    }

    /// Adds campaign (with the given chance), automation, list, step and e-mail, or some of them.
    fn add_references(&mut self, draft: &mut Draft, campaign_chance: f64) {
        let account = draft.account;
        if account == 0 && self.chance(self.knobs.giant) {
            draft.set("campaign_id", self.pools[0].campaigns[0].clone());
        } else if self.chance(campaign_chance) {
            let campaign = pick_id(&mut self.rng, &self.pools[account].campaigns);
            draft.set("campaign_id", campaign);
        }
        if self.chance(0.25) {
            let automation = pick_id(&mut self.rng, &self.pools[account].automations);
            draft.set("automation_id", automation);
        }
        if self.chance(0.4) {
            let list = pick_id(&mut self.rng, &self.pools[account].lists);
            draft.set("list_id", list);
        }
        if self.chance(0.5) {
            let step = pick_id(&mut self.rng, &self.pools[account].steps);
            draft.set("step_id", step);
        }
        if self.chance(0.6) {
            draft.set("email", self.email());
        }
    }

    /// Writes `null` for a field that is left out. Whether that is valid is disputed.
    fn spell_null(&mut self, draft: &mut Draft) {
        if self.knobs.disputed && self.chance(0.1) {
            let name = self.pick(&["email", "campaign_id", "step_id", "metadata", "message_id", "link"]);
            draft.fields.entry(name).or_insert(Value::Null);
        }
    }

    fn event_record(&mut self, draft: &Draft) -> Record {
        let fields = Value::Object(draft.spelled(&mut self.rng));
        let mut record = Record::event(&fields);
        if self.chance(0.05) {
            record.value = Some(format!("  {fields} ").into_bytes());
        }
        record
    }

    // Times and places in the publish order.

    /// A time in nanoseconds since 1970, in an era and well away from its edges.
    fn instant(&mut self, era: Era) -> i64 {
        let edge_ns = self.now_ns - i64::from(self.knobs.retention_days) * NS_PER_DAY;
        if era == Era::Expired {
            let near = self.chance(0.5);
            let age_ns = if near { 2 * NS_PER_HOUR } else { 3000 * NS_PER_DAY };
            return edge_ns - MARGIN_NS - self.rng.random_range(0..age_ns);
        }
        if self.chance(self.knobs.tied) {
            let tied_ns = self.tied_ms[self.rng.random_range(0..self.tied_ms.len())] * NS_PER_MS;
            let within_ns = if self.chance(0.3) { self.rng.random_range(0..NS_PER_MS) } else { 0 };
            return tied_ns + within_ns;
        }
        let (from_ns, to_ns) = match self.rng.random_range(0..20) {
            0 => (edge_ns + MARGIN_NS, edge_ns + 3 * NS_PER_HOUR),
            1 => (self.now_ns + 60 * NS_PER_S, self.now_ns + 20 * NS_PER_HOUR),
            2 | 3 => (self.now_ns - 60 * NS_PER_S, self.now_ns),
            _ => (edge_ns + MARGIN_NS, self.now_ns),
        };
        let grain_ns = self.pick(&[NS_PER_S, NS_PER_S / 10, NS_PER_MS, NS_PER_MS, NS_PER_MS, 1000, 1]);
        let at_ns = self.rng.random_range(from_ns..to_ns);
        at_ns - at_ns.rem_euclid(grain_ns)
    }

    /// Mostly in the order of time, at times anywhere.
    fn position(&mut self, at_ns: i64) -> f64 {
        if self.chance(0.4) {
            return self.rng.random();
        }
        let span_ns = i64::from(self.knobs.retention_days) * NS_PER_DAY;
        let age_ms = (self.now_ns - at_ns).clamp(0, span_ns) / NS_PER_MS;
        #[expect(clippy::cast_precision_loss, reason = "a rough place is enough")]
        let position = 1.0 - age_ms as f64 / (span_ns / NS_PER_MS) as f64;
        (position + self.rng.random_range(-0.01..0.01)).clamp(0.0, 0.999)
    }

    // Single values.

    fn chance(&mut self, share: f64) -> bool {
        self.rng.random_bool(share)
    }

    fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.rng.random_range(0..among.len())]
    }

    /// Mostly the first account, which has the giant campaign if there is one.
    fn account(&mut self) -> usize {
        let giant = self.knobs.giant;
        if self.chance(giant) { 0 } else { self.rng.random_range(0..self.pools.len()) }
    }

    fn contact(&mut self, account: usize) -> String {
        pick_id(&mut self.rng, &self.pools[account].contacts)
    }

    fn uuid(&mut self) -> String {
        random_uuid(&mut self.rng)
    }

    fn email(&mut self) -> String {
        let n = self.rng.random_range(0..40);
        if self.chance(0.1) { format!("Zoë.{n}@exämple.org") } else { format!("jane.{n}@example.com") }
    }

    fn name(&mut self, version: usize) -> String {
        let name = self.pick(&["Spring Sale", "Welcome", "Überraschung", "<b>\"50 %\"</b> 🎉"]);
        format!("{name} {version}.{}", self.rng.random_range(0..100))
    }

    fn recased(&mut self, id: &str) -> String {
        recased(&mut self.rng, id)
    }

    fn message_id(&mut self, account: usize) -> String {
        let pool = &mut self.pools[account];
        pool.serial += 1;
        let serial = pool.serial;
        if self.chance(0.3) { self.uuid() } else { format!("msg_{serial}") }
    }

    /// Ids that sort as text and not as numbers, UUIDs, and ids that the account has used before.
    fn event_id(&mut self, account: usize) -> String {
        let pool = &mut self.pools[account];
        pool.serial += 1;
        let serial = pool.serial;
        let used = self.pools[account].event_ids.choose(&mut self.rng).cloned();
        let id = match (self.rng.random_range(0..20), used) {
            (0, Some(used)) => used,
            // The same letters in another case: another id, unless it is a UUID.
            (1, Some(used)) => used.to_ascii_uppercase(),
            (2..=7, _) => self.uuid(),
            (8..=11, _) => serial.to_string(),
            (12, _) => format!("{serial:0>64}"),
            (13, _) => format!("a.b:c-{serial}"),
            (14, _) => format!("Evt-{serial:X}"),
            _ => format!("evt_{serial}"),
        };
        self.pools[account].event_ids.push(id.clone());
        lower_uuid(&id)
    }
}

impl Draft {
    fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.fields.insert(name.to_owned(), value.into());
    }

    /// Says the same as the other event does, if that says anything.
    fn copy(&mut self, name: &str, other: &Draft) {
        if let Some(value) = other.fields.get(name) {
            self.set(name, value.clone());
        }
    }

    /// The event in one of its spellings: order of fields, case of UUIDs, zone and precision of the
    /// time, unknown fields.
    fn spelled(&self, rng: &mut StdRng) -> Map<String, Value> {
        let mut fields: Vec<(String, Value)> =
            self.fields.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        fields.push(("occurred_at".to_owned(), json!(spelled_time(rng, self.at_ns))));
        if rng.random_bool(0.1) {
            fields.push(("x_trace".to_owned(), json!({ "hops": [1, 2] })));
        }
        fields.shuffle(rng);
        for (name, value) in &mut fields {
            let is_id = name == "id" || (name.ends_with("_id") && name != "account_id");
            if let (true, Some(id)) = (is_id, value.as_str()) {
                *value = json!(recased(rng, id));
            }
        }
        fields.into_iter().collect()
    }
}

/// The ids of every account: mostly the same ones, a few its own.
fn pools(rng: &mut StdRng, knobs: &Knobs) -> Vec<Pool> {
    let mut ids = |kind: &str, count: usize| -> Vec<String> {
        (0..count).map(|n| if n % 2 == 0 { format!("{kind}_{n}") } else { random_uuid(rng) }).collect()
    };
    let (automations, lists, steps) = (ids("auto", 3), ids("list", 4), ids("step", 5));
    let campaigns = ids("cmp", knobs.campaigns.max(1));
    let contacts: Vec<String> = (0..knobs.contacts.max(1)).map(|_| random_uuid(rng)).collect();
    (0..knobs.accounts.max(1))
        .map(|n| {
            let mut pool = Pool {
                account: format!("{}-{n}.test", knobs.account_prefix),
                campaigns: campaigns.clone(),
                automations: automations.clone(),
                lists: lists.clone(),
                steps: steps.clone(),
                contacts: contacts.clone(),
                serial: 0,
                event_ids: Vec::new(),
            };
            pool.campaigns.push(format!("own:campaign.of-{n}"));
            pool.contacts.push(random_uuid(rng));
            pool
        })
        .collect()
}

/// One of the ids, the first ones more often.
fn pick_id(rng: &mut StdRng, ids: &[String]) -> String {
    let reach = if rng.random_bool(0.3) { ids.len().min(2) } else { ids.len() };
    ids[rng.random_range(0..reach)].clone()
}

fn random_uuid(rng: &mut StdRng) -> String {
    uuid::Builder::from_random_bytes(rng.random()).into_uuid().to_string()
}

fn lower_uuid(id: &str) -> String {
    if id.len() == 36 && Uuid::parse_str(id).is_ok() { id.to_ascii_lowercase() } else { id.to_owned() }
}

/// A UUID in upper, lower or mixed case; any other id as it is.
fn recased(rng: &mut StdRng, id: &str) -> String {
    if id.len() != 36 || Uuid::parse_str(id).is_err() {
        return id.to_owned();
    }
    match rng.random_range(0..6) {
        0 => id.to_ascii_uppercase(),
        1 => id.chars().map(|c| if rng.random() { c.to_ascii_uppercase() } else { c }).collect(),
        _ => id.to_owned(),
    }
}

/// A point in time (nanoseconds since 1970) as RFC 3339, in any zone, with as few digits behind the
/// point as it takes or more.
fn spelled_time(rng: &mut StdRng, at_ns: i64) -> String {
    const ZONES: [(&str, i64); 9] = [
        ("Z", 0),
        ("Z", 0),
        ("Z", 0),
        ("+00:00", 0),
        ("-00:00", 0),
        ("+02:00", 120),
        ("-07:30", -450),
        ("+14:00", 840),
        ("+05:45", 345),
    ];
    let (zone, minutes) = ZONES[rng.random_range(0..ZONES.len())];
    let local = DateTime::from_timestamp_nanos(at_ns + minutes * 60 * NS_PER_S);
    let digits = format!("{:09}", at_ns.rem_euclid(NS_PER_S));
    let needed = digits.trim_end_matches('0').len();
    let shown = if rng.random_bool(0.6) { needed } else { rng.random_range(needed..=9) };
    let point = if shown == 0 { "" } else { "." };
    format!("{}{point}{}{zone}", local.format("%Y-%m-%dT%H:%M:%S"), &digits[..shown])
}

/// A way to break a rule of the contract.
#[derive(Clone, Copy)]
struct Flaw {
    name: &'static str,
    /// The type of the event that is spoiled.
    raw_type: &'static str,
    /// Spoils the event; the time is `now` in nanoseconds.
    spoil: fn(&mut Value, i64),
    /// Spoils its bytes as well.
    bytes: Option<fn(&Value) -> Vec<u8>>,
    is_postable: bool,
}

impl Flaw {
    const fn of(name: &'static str, raw_type: &'static str, spoil: fn(&mut Value, i64)) -> Self {
        Self { name, raw_type, spoil, bytes: None, is_postable: true }
    }

    const fn of_bytes(name: &'static str, bytes: fn(&Value) -> Vec<u8>) -> Self {
        Self { name, raw_type: "open", spoil: |_, _| {}, bytes: Some(bytes), is_postable: false }
    }

    /// The intake would fill in the account from the key.
    const fn without_account() -> Self {
        Self { is_postable: false, ..Self::of("no account_id", "open", |v, _| remove(v, "account_id")) }
    }
}

/// Every flaw that a history has.
const FLAWS: [Flaw; 41] = [
    Flaw::of("no id", "open", |v, _| remove(v, "id")),
    Flaw::of("empty id", "open", |v, _| v["id"] = json!("")),
    Flaw::of("id of 65 characters", "open", |v, _| v["id"] = json!("x".repeat(65))),
    Flaw::of("id with a space", "open", |v, _| v["id"] = json!("evt 1")),
    Flaw::of("id with a slash", "open", |v, _| v["id"] = json!("evt/1")),
    Flaw::of("id with an umlaut", "open", |v, _| v["id"] = json!("ävt")),
    Flaw::of("id that is a number", "open", |v, _| v["id"] = json!(17)),
    Flaw::without_account(),
    Flaw::of("account with a colon", "open", |v, _| v["account_id"] = json!("a:b")),
    Flaw::of("account with a slash", "open", |v, _| v["account_id"] = json!("../a")),
    Flaw::of("no type", "open", |v, _| remove(v, "type")),
    Flaw::of("unknown type", "open", |v, _| v["type"] = json!("sneezed")),
    Flaw::of("no occurred_at", "open", |v, _| remove(v, "occurred_at")),
    Flaw::of("time without a zone", "open", |v, now_ns| v["occurred_at"] = json!(utc(now_ns, 0, ""))),
    Flaw::of("time that is only a date", "open", |v, now_ns| {
        let time = utc(now_ns, 0, "Z");
        v["occurred_at"] = json!(time[..10]);
    }),
    Flaw::of("time that is no date", "open", |v, _| v["occurred_at"] = json!("2025-02-30T00:00:00Z")),
    Flaw::of("time that is a number", "open", |v, now_ns| v["occurred_at"] = json!(now_ns / NS_PER_MS)),
    Flaw::of("two days ahead", "open", |v, now_ns| v["occurred_at"] = json!(utc(now_ns, 2, "Z"))),
    Flaw::of("neither contact nor message", "open", |v, _| {
        remove(v, "contact_id");
        remove(v, "message_id");
    }),
    Flaw::of("contact that is no UUID", "open", |v, _| v["contact_id"] = json!("jane")),
    Flaw::of("campaign with a space", "open", |v, _| v["campaign_id"] = json!("cmp 0")),
    Flaw::of("automation of 65 characters", "open", |v, _| v["automation_id"] = json!("a".repeat(65))),
    Flaw::of("empty list", "subscribe", |v, _| v["list_id"] = json!("")),
    Flaw::of("step with a slash", "open", |v, _| v["step_id"] = json!("a/b")),
    Flaw::of("message of 65 characters", "open", |v, _| v["message_id"] = json!("m".repeat(65))),
    Flaw::of("click without url", "click", |v, _| remove(v, "url")),
    Flaw::of("unknown link", "click", |v, _| v["link"] = json!("footer")),
    Flaw::of("unknown bounce type", "bounce", |v, _| v["bounce"] = json!({ "type": "medium" })),
    Flaw::of("bounce that is a text", "bounce", |v, _| v["bounce"] = json!("hard")),
    Flaw::of("no purchase", "purchase", |v, _| remove(v, "purchase")),
    Flaw::of("no order", "purchase", |v, _| remove(&mut v["purchase"], "order_uuid")),
    Flaw::of("no product name", "purchase", |v, _| remove(&mut v["purchase"], "product_name")),
    Flaw::of("no is_subscription", "purchase", |v, _| remove(&mut v["purchase"], "is_subscription")),
    Flaw::of("metadata that is a list", "open", |v, _| v["metadata"] = json!([1])),
    Flaw::of("metadata of 9 KiB", "open", |v, _| v["metadata"] = json!({ "x": "x".repeat(9 * 1024) })),
    Flaw::of("message of 65 KiB", "open", |v, _| v["x_padding"] = json!("x".repeat(65 * 1024))),
    Flaw::of_bytes("cut off", |v| v.to_string().trim_end_matches('}').as_bytes().to_vec()),
    Flaw::of_bytes("a list", |v| format!("[{v}]").into_bytes()),
    Flaw::of_bytes("a text", |_| b"\"open\"".to_vec()),
    Flaw::of_bytes("no UTF-8", |v| [v.to_string().as_bytes(), b"\xff\xfe"].concat()),
    Flaw::of_bytes("nothing at all", |_| Vec::new()),
];

fn remove(value: &mut Value, name: &str) {
    if let Some(object) = value.as_object_mut() {
        object.remove(name);
    }
}

fn utc(now_ns: i64, days_ahead: i64, zone: &str) -> String {
    let time = DateTime::from_timestamp_nanos(now_ns + days_ahead * NS_PER_DAY);
    format!("{}{zone}", time.format("%Y-%m-%dT%H:%M:%S"))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use super::*;
    use crate::model::{Model, Taken};

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_784_000_000, 0).expect("a time")
    }

    fn fields(record: &Record) -> Value {
        record.value.as_deref().and_then(|value| serde_json::from_slice(value).ok()).unwrap_or_default()
    }

    #[test]
    fn same_seed_gives_same_history() {
        let knobs = Knobs::sized(300);
        assert_eq!(History::generate(7, &knobs, now()), History::generate(7, &knobs, now()));
        assert_ne!(History::generate(7, &knobs, now()), History::generate(8, &knobs, now()));
    }

    #[test]
    fn size_and_giant_are_as_asked() {
        let knobs = Knobs::sized(5000).with_giant(0.8);
        let mut model = Model::new(180);
        for record in &History::generate(1, &knobs, now()).records {
            model.take(record, now());
        }
        let giant = model.timeline(Endpoint::Campaign, "acct-0.test", "cmp_0").times_ms().len();
        assert!((2000..5000).contains(&giant), "{giant}");
        let tiny = History::generate(1, &Knobs::sized(20), now());
        assert!((20..100).contains(&tiny.records.iter().filter(|r| r.topic == Topic::Events).count()));
    }

    /// The generator's word against the model's: each flawed record is refused, each other one is not.
    #[test]
    fn flawed_records_and_only_those_are_refused() {
        for seed in 0..20 {
            let knobs = Knobs { flawed: 0.5, disputed: seed % 2 == 0, ..Knobs::sized(500) };
            let mut model = Model::new(180);
            for record in &History::generate(seed, &knobs, now()).records {
                let taken = model.take(record, now());
                let is_refused = matches!(taken, Taken::Refused(_));
                assert_eq!(record.flaw.is_some(), is_refused, "{taken:?} {record:?}");
            }
        }
    }

    #[test]
    fn every_flaw_turns_up() {
        let knobs = Knobs { flawed: 1.0, ..Knobs::sized(2000) };
        let history = History::generate(3, &knobs, now());
        let flaws: BTreeSet<_> = history.records.iter().filter_map(|record| record.flaw).collect();
        assert_eq!(flaws, FLAWS.iter().map(|flaw| flaw.name).collect());
    }

    #[test]
    fn identities_do_not_conflict_and_messages_have_one_send() {
        let history = History::generate(5, &Knobs { repeated: 0.3, ..Knobs::sized(3000) }, now());
        let mut sends: HashMap<_, _> = HashMap::new();
        let mut model = Model::new(180);
        let mut repeats = 0;
        for record in history.records.iter().filter(|r| r.flaw.is_none() && r.topic == Topic::Events) {
            repeats += usize::from(model.take(record, now()) == Taken::Repeat);
            let event = fields(record);
            let is_send = ["send", "sent"].contains(&event["type"].as_str().unwrap_or_default());
            if let (true, Some(message)) = (is_send, event["message_id"].as_str()) {
                let id = lower_uuid(event["id"].as_str().expect("an id"));
                let key = (record.account.clone(), lower_uuid(message));
                assert_eq!(*sends.entry(key).or_insert(id.clone()), id);
            }
        }
        assert!(repeats > 500, "{repeats}");
    }

    /// Everything that a history promises is there often enough to matter.
    #[test]
    fn histories_cover_what_they_promise() {
        let history = History::generate(11, &Knobs::sized(5000), now());
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let (mut types, mut instants, mut places) = (BTreeSet::new(), HashMap::new(), HashMap::new());
        let mut model = Model::new(180);
        for record in history.records.iter().filter(|record| record.flaw.is_none()) {
            let event = fields(record);
            let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
            let mut count = |name, is_so| *counts.entry(name).or_default() += usize::from(is_so);
            count("deletion", record.value.is_none());
            count("expired", model.take(record, now()) == Taken::Expired);
            if record.topic == Topic::References {
                continue;
            }
            types.insert(text("type"));
            let has_contact = event.get("contact_id").is_some();
            count("message only", !has_contact && event.get("campaign_id").is_none());
            count("own and message", has_contact && event.get("message_id").is_some());
            count("upper-case id", text("id").len() == 36 && text("id") != text("id").to_lowercase());
            count("zone", !text("occurred_at").ends_with('Z'));
            count("nanoseconds", text("occurred_at").split('.').nth(1).is_some_and(|rest| rest.len() > 9));
            count("list management", ["unsubscribe", "preferences"].contains(&text("link").as_str()));
            count(
                "no variant",
                event["purchase"].is_object() && event["purchase"].get("variant_name").is_none(),
            );
            count("opt-out", text("type").starts_with("global_unsub") && event.get("campaign_id").is_some());
            count("no key", record.key.is_none());
            let at: DateTime<Utc> = text("occurred_at").parse().expect("a time");
            let age_h = (now() - at).num_hours();
            count("ahead", age_h < 0);
            count("about to expire", (180 * 24 - 4..180 * 24).contains(&age_h));
            count("just expired", (180 * 24..180 * 24 + 4).contains(&age_h));
            let instant = (record.account.clone(), at.timestamp_millis());
            let ids: &mut BTreeSet<String> = instants.entry(instant).or_default();
            ids.insert(text("id"));
            count("tied", ids.len() == 5);
            let elsewhere: &mut BTreeSet<String> = places.entry((text("id"), at)).or_default();
            elsewhere.insert(record.account.clone());
            count("same event in two accounts", elsewhere.len() == 2);
        }
        assert_eq!(types.len(), 2 * TYPES.len());
        assert_eq!(counts.len(), 16);
        assert!(counts.values().all(|count| *count >= 10), "{counts:?}");
    }

    #[test]
    fn deletion_is_posted_as_a_flag() {
        let deletion = Record::reference_deletion("campaign", "a", "x:y");
        let body: Value = serde_json::from_slice(&deletion.post_body().expect("a body")).expect("JSON");
        assert_eq!(body, json!({ "kind": "campaign", "account_id": "a", "id": "x:y", "deleted": true }));
    }
}
