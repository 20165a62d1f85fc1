//! What is published in a history, in which order, and what must have become of it: a plain model.

use std::collections::{BTreeMap, BTreeSet};

use event_log::Topic;
use event_store::StoredReference;
use timeline::reference::{Kind, ReferenceKey};
use timeline::time::DAY_MS;
use timeline::{AccountId, Id, TimelineId, Timestamp};

use super::RETENTION_MS;
use super::broker::EVENTS_PARTITIONS;
use super::sim::{BEGIN, Sim};

/// Messages whose send comes, and behind them some whose send never does.
const MESSAGES: usize = 8;
const MESSAGES_WITHOUT_SEND: usize = 2;
const MINUTE_MS: i64 = 60_000;
/// No event is younger.
pub(crate) const NEWEST: Timestamp = Timestamp(BEGIN.0 + 20 * 60 * MINUTE_MS);

/// A row, as the model knows it: milliseconds, id, type.
pub(crate) type Row = (i64, String, u8);

/// A record, and where it goes.
#[derive(Clone)]
pub(crate) struct Planned {
    pub(crate) topic: Topic,
    pub(crate) partition: usize,
    pub(crate) key: Option<String>,
    pub(crate) value: Vec<u8>,
}

/// A history's records, and what must be there at its end.
#[derive(Default)]
pub(crate) struct Plan {
    /// In the order in which they are published.
    pub(crate) records: Vec<Planned>,
    /// The rows of each timeline that have not expired by then.
    pub(crate) want: BTreeMap<TimelineId, BTreeSet<Row>>,
    /// Ids of events that may stand in a row: those of `want`, and those that expire on the way.
    pub(crate) projected: BTreeSet<String>,
    /// Ids of events that wait for their send.
    pub(crate) waiting: BTreeSet<String>,
    /// Messages that are no events.
    pub(crate) dead: BTreeSet<Vec<u8>>,
    /// Timelines that exist, with rows or without.
    pub(crate) known: BTreeSet<TimelineId>,
    /// The last of each reference.
    pub(crate) references: BTreeMap<ReferenceKey, StoredReference>,
    /// Whether some events expire on the way.
    pub(crate) expires: bool,
    /// A contact that was forgotten, and what it had.
    pub(crate) forgotten: Option<(TimelineId, BTreeSet<Row>)>,
}

struct Draft<'a> {
    sim: &'a Sim,
    account: AccountId,
    contacts: usize,
    plan: Plan,
}

impl Plan {
    /// The same, where a contact was forgotten. What of it waited may wait yet.
    pub(crate) fn without(mut self, contact: &TimelineId) -> Plan {
        let erased = self.want.remove(contact).unwrap_or_default();
        for rows in self.want.values_mut() {
            rows.retain(|row| !erased.contains(row));
        }
        self.waiting.retain(|id| erased.iter().all(|(_, erased, _)| erased != id));
        self.forgotten = Some((contact.clone(), erased));
        self
    }

    /// A plan with about so many events.
    pub(crate) fn draw(sim: &Sim, events: usize) -> Plan {
        let account = AccountId::parse("acme").unwrap();
        let contacts = if sim.chance(0.5) { 3 } else { MESSAGES };
        let mut draft = Draft { sim, account, contacts, plan: Plan::default() };
        draft.plan.expires = sim.chance(0.5);
        (0..MESSAGES).for_each(|message| draft.send(message));
        (0..events).for_each(|number| draft.event(number));
        (0..events / 8).for_each(|number| draft.nothing_to_show(number));
        let Plan { records, .. } = &mut draft.plan;
        // Everything comes in any order.
        for at in (1..records.len()).rev() {
            records.swap(at, sim.pick(at + 1));
        }
        (0..10).for_each(|number| draft.reference(number));
        draft.plan
    }
}

/// A contact's id.
pub(crate) fn contact_of(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

impl Draft<'_> {
    /// The campaign and the contact of a message: contacts are few with long histories, or many with short ones.
    fn message_of(&self, message: usize) -> (String, String) {
        (format!("c{}", message % 2), contact_of(message % self.contacts))
    }

    fn campaign(&self, id: &str) -> TimelineId {
        TimelineId::campaign(&self.account, &Id::parse(id).unwrap())
    }

    fn contact(&self, id: &str) -> TimelineId {
        TimelineId::contact(&self.account, id.parse().unwrap())
    }

    fn time(&self) -> i64 {
        match self.sim.random(0..30) {
            0 => NEWEST.0,
            _ => BEGIN.0 - 10_000 + i64::try_from(self.sim.random(0..8)).unwrap() * 1000,
        }
    }

    /// A time that is in retention when the history begins, and no more when it ends.
    fn expiring_time(&self) -> i64 {
        BEGIN.0 - RETENTION_MS + i64::try_from(self.sim.random(5..40)).unwrap() * MINUTE_MS
    }

    /// Publishes a message, and now and then again, in any partition.
    fn publish(&mut self, json: &str) {
        loop {
            let partition = self.sim.pick(EVENTS_PARTITIONS);
            let value = json.as_bytes().to_vec();
            self.plan.records.push(Planned { topic: Topic::Events, partition, key: None, value });
            if !self.sim.chance(0.3) {
                break;
            }
        }
    }

    fn send(&mut self, message: usize) {
        let ((campaign, contact), at) = (self.message_of(message), self.time());
        let id = format!("send{message}");
        let occurred_at = Timestamp(at).to_rfc3339();
        self.publish(&format!(
            r#"{{"id":"{id}","account_id":"acme","type":"send","occurred_at":"{occurred_at}","message_id":"m{message}","campaign_id":"{campaign}","contact_id":"{contact}","email":"a@b.example","automation_id":"au","step_id":"s"}}"#
        ));
        self.expect(&[self.campaign(&campaign), self.contact(&contact)], (at, id, 0));
    }

    fn expect(&mut self, timelines: &[TimelineId], row: Row) {
        for timeline in timelines {
            self.plan.want.entry(timeline.clone()).or_default().insert(row.clone());
            self.plan.known.insert(timeline.clone());
        }
        if !timelines.is_empty() {
            self.plan.projected.insert(row.1);
        }
    }

    /// An event of a message, whose send comes or does not; some expire on the way.
    fn event(&mut self, number: usize) {
        let message = self.sim.pick(MESSAGES + MESSAGES_WITHOUT_SEND);
        let is_sent = message < MESSAGES;
        let expires = self.plan.expires && is_sent && self.sim.chance(0.15);
        let at = if expires { self.expiring_time() } else { self.time() };
        let (campaign, contact) = self.message_of(message);
        // All, some or nothing of what the send knows.
        let own = self.sim.random(0..4);
        let (says_campaign, says_contact) = (own < 2, own.is_multiple_of(2));
        let mut says = String::new();
        if says_campaign {
            says.push_str(&format!(r#","campaign_id":"{campaign}""#));
        }
        if says_contact {
            says.push_str(&format!(r#","contact_id":"{contact}""#));
        }
        let (name, code) = [("open", 2), ("delivery", 1), ("reply", 4)][self.sim.pick(3)];
        let id = format!("e{number}");
        let occurred_at = Timestamp(at).to_rfc3339();
        self.publish(&format!(
            r#"{{"id":"{id}","account_id":"acme","type":"{name}","occurred_at":"{occurred_at}","message_id":"m{message}"{says}}}"#
        ));
        let mut timelines = Vec::new();
        if is_sent || says_campaign {
            timelines.push(self.campaign(&campaign));
        }
        if is_sent || says_contact {
            timelines.push(self.contact(&contact));
        }
        if expires {
            self.plan.projected.insert(id);
            return;
        }
        if !is_sent {
            self.plan.waiting.insert(id.clone());
        }
        self.expect(&timelines, (at, id, code));
    }

    /// What shows nowhere: no event, a click on list management, an event past retention.
    fn nothing_to_show(&mut self, number: usize) {
        let at = Timestamp(BEGIN.0 - 5000).to_rfc3339();
        let old = Timestamp(BEGIN.0 - RETENTION_MS - DAY_MS).to_rfc3339();
        let (campaign, contact) = (format!("x{number}"), contact_of(number % 3));
        let head = format!(
            r#""id":"x{number}","account_id":"acme","campaign_id":"{campaign}","contact_id":"{contact}","email":"a@b.example""#
        );
        let exists = [self.campaign(&campaign), self.contact(&contact)];
        match number % 4 {
            0 => {
                let json = format!(r#"{{{head},"type":"open","occurred_at":"yesterday"}}"#);
                self.plan.dead.insert(json.clone().into_bytes());
                self.publish(&json);
            }
            1 => {
                let json = format!("{{{head}");
                self.plan.dead.insert(json.clone().into_bytes());
                self.publish(&json);
            }
            2 => {
                self.plan.known.extend(exists);
                self.publish(&format!(
                    r#"{{{head},"type":"click","occurred_at":"{at}","url":"https://a.example/u","link":"unsubscribe"}}"#
                ));
            }
            _ => {
                self.plan.known.extend(exists);
                self.publish(&format!(r#"{{{head},"type":"open","occurred_at":"{old}"}}"#));
            }
        }
    }

    /// A change of a reference; those of one key stay in their order.
    fn reference(&mut self, number: usize) {
        let (kind, id) = match self.sim.pick(3) {
            0 => (Kind::Contact, contact_of(0)),
            1 => (Kind::List, "list".to_owned()),
            _ => (Kind::Campaign, "named".to_owned()),
        };
        let key = ReferenceKey { account: self.account.clone(), kind, id: Id::parse(&id).unwrap() };
        let last = self.plan.references.entry(key.clone()).or_default();
        last.deleted = self.sim.chance(0.2);
        let mut value = String::new();
        if !last.deleted {
            let name = format!("name {number}");
            value =
                format!(r#"{{"kind":"{}","account_id":"acme","id":"{id}","name":"{name}"}}"#, kind.name());
            last.name = Some(name.into());
            match kind {
                Kind::Campaign => drop(self.plan.known.insert(self.campaign(&id))),
                Kind::Contact => drop(self.plan.known.insert(self.contact(&id))),
                Kind::List | Kind::Automation => {}
            }
        }
        let record = Planned {
            topic: Topic::References,
            partition: 0,
            key: Some(key.to_string()),
            value: value.into_bytes(),
        };
        // Somewhere behind the reference before it.
        let records = &self.plan.records;
        let before = records.iter().rposition(|record| record.topic == Topic::References);
        let first = before.map_or(0, |at| at + 1);
        let at = first + self.sim.pick((records.len() - first).div_ceil(3) + 1);
        self.plan.records.insert(at.min(self.plan.records.len()), record);
    }
}
