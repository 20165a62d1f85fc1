//! The events of one campaign, as a sender would publish them: a blast within an hour or so, many of its sends in one
//! millisecond, deliveries and bounces at once, opens and clicks that tail off over weeks, a few of the rest; in the order of
//! their times, give or take seconds; some of them twice. Seeded: what is sent, and so what must show, is known.

use std::fmt::Write;

use chrono::{DateTime, SecondsFormat};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

const SECOND_MS: i64 = 1000;
const MINUTE_MS: i64 = 60 * SECOND_MS;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;

/// How long ago the blast began.
const BEGUN_MS: i64 = 30 * DAY_MS;
/// Sends of one millisecond, and the time to the next of them: a hundred a second.
const BURST_SENDS: u32 = 40;
const BURST_EVERY_MS: i64 = 400;
/// How much later than its time an event arrives, at most.
const DELAY_MS_MAX: i64 = 5 * SECOND_MS;
/// How often an event is sent again, and how far back most of those are.
const REPEAT_SHARE: f64 = 0.02;
const REPEAT_BACK_MAX: usize = 5000;

/// The types of the campaign stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sent,
    Delivered,
    Opened,
    Clicked,
    Replied,
    Bounced,
    Unsubscribed,
    Complained,
}

impl Kind {
    pub(crate) const ALL: [Kind; 8] = [
        Kind::Sent,
        Kind::Delivered,
        Kind::Opened,
        Kind::Clicked,
        Kind::Replied,
        Kind::Bounced,
        Kind::Unsubscribed,
        Kind::Complained,
    ];

    /// As the endpoint names it.
    pub(crate) fn shown(self) -> &'static str {
        match self {
            Kind::Sent => "sent",
            Kind::Delivered => "delivered",
            Kind::Opened => "opened",
            Kind::Clicked => "clicked",
            Kind::Replied => "replied",
            Kind::Bounced => "bounced",
            Kind::Unsubscribed => "unsubscribed",
            Kind::Complained => "complained",
        }
    }

    /// As a sender names it, and what else an event of it carries.
    fn raw(self) -> (&'static str, &'static str) {
        match self {
            Kind::Sent => ("send", ""),
            Kind::Delivered => ("delivery", ""),
            Kind::Opened => ("open", r#","metadata":{"user_agent":"Mozilla/5.0","ip_country":"DE"}"#),
            Kind::Clicked => {
                ("click", r#","url":"https://shop.example/spring?ref=mail","metadata":{"ip_country":"DE"}"#)
            }
            Kind::Replied => ("reply", ""),
            Kind::Bounced => ("bounce", r#","bounce":{"type":"hard","reason":"550 no such user"}"#),
            Kind::Unsubscribed => ("unsubscribe", ""),
            Kind::Complained => ("complaint", ""),
        }
    }
}

/// One event. Ids are of one length, so that their order as text is that of the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Made {
    at_ms: i64,
    id: u64,
    recipient: u32,
    kind: u8,
}

/// The events of one campaign.
pub(crate) struct Mix {
    campaign: String,
    /// Oldest first, equal times by id.
    events: Vec<Made>,
    /// In the order in which they are sent, repeats included.
    arrivals: Vec<u32>,
}

impl Mix {
    /// `count` events of `campaign`, the last of them before `now_ms`.
    pub(crate) fn new(campaign: &str, count: usize, now_ms: i64, seed: u64) -> Mix {
        let mut maker =
            Maker { rng: StdRng::seed_from_u64(seed), now_ms, count, events: Vec::with_capacity(count + 16) };
        let mut recipient = 0;
        while maker.events.len() < count {
            maker.reach(recipient);
            recipient += 1;
        }
        let Maker { mut rng, mut events, .. } = maker;
        events.sort_unstable();
        let mut arriving: Vec<(i64, u32)> = events
            .iter()
            .zip(0..)
            .map(|(event, at)| (event.at_ms + rng.random_range(0..=DELAY_MS_MAX), at))
            .collect();
        arriving.sort_unstable();
        let mut arrivals = Vec::with_capacity(count + count / 40);
        for (sent, (_, at)) in arriving.iter().enumerate() {
            arrivals.push(*at);
            if rng.random_bool(REPEAT_SHARE) {
                // Most repeats come soon, some out of the blue.
                let back = if rng.random_bool(0.9) { sent.min(REPEAT_BACK_MAX) } else { sent };
                arrivals.push(arriving[rng.random_range(sent - back..=sent)].1);
            }
        }
        Mix { campaign: campaign.to_owned(), events, arrivals }
    }

    /// How many events there are.
    pub(crate) fn count(&self) -> usize {
        self.events.len()
    }

    /// How many events of `kind` there are.
    pub(crate) fn count_of(&self, kind: Kind) -> usize {
        self.events.iter().filter(|event| event.kind == kind as u8).count()
    }

    /// How many are sent, repeats included.
    pub(crate) fn sent_count(&self) -> usize {
        self.arrivals.len()
    }

    /// How many have the time of another.
    pub(crate) fn sharing_a_millisecond(&self) -> usize {
        self.events.chunk_by(|one, next| one.at_ms == next.at_ms).map(<[Made]>::len).filter(|n| *n > 1).sum()
    }

    /// The bodies to post, NDJSON, each with the number of its events.
    pub(crate) fn batches(&self, events_max: usize) -> impl Iterator<Item = (usize, String)> {
        self.arrivals.chunks(events_max).map(|batch| {
            let mut body = String::with_capacity(batch.len() * 320);
            for at in batch {
                self.write_event(&self.events[*at as usize], &mut body);
            }
            (batch.len(), body)
        })
    }

    /// The ids that page `page` (from 1) shows, of one type or of all.
    pub(crate) fn page(&self, kind: Option<Kind>, per_page: usize, page: usize) -> Vec<String> {
        let wanted = |event: &&Made| kind.is_none_or(|kind| event.kind == kind as u8);
        let rows = self.events.iter().rev().filter(wanted).skip((page - 1) * per_page).take(per_page);
        rows.map(|event| shown_id(event.id)).collect()
    }

    fn write_event(&self, event: &Made, out: &mut String) {
        let (name, more) = Kind::ALL[usize::from(event.kind)].raw();
        let time = DateTime::from_timestamp_millis(event.at_ms).unwrap_or_default();
        let time = time.to_rfc3339_opts(SecondsFormat::Millis, true);
        let (recipient, contact) = (event.recipient, contact(event.recipient));
        let (id, campaign) = (shown_id(event.id), &self.campaign);
        writeln!(
            out,
            r#"{{"id":"{id}","type":"{name}","occurred_at":"{time}","contact_id":"{contact}","email":"reader{recipient}@example.com","campaign_id":"{campaign}","step_id":"step_1"{more}}}"#
        )
        .expect("a string takes everything");
    }
}

fn shown_id(id: u64) -> String {
    format!("evt_{id:016x}")
}

fn contact(recipient: u32) -> Uuid {
    let bits = u128::from(scattered(recipient.into())) << 64 | u128::from(scattered(!u64::from(recipient)));
    uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid()
}

/// Another number for each number, as if by chance (the last steps of SplitMix64).
fn scattered(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

struct Maker {
    rng: StdRng,
    now_ms: i64,
    count: usize,
    events: Vec<Made>,
}

impl Maker {
    /// All that comes of one recipient.
    fn reach(&mut self, recipient: u32) {
        let burst = i64::from(recipient / BURST_SENDS);
        let sent = self.now_ms - BEGUN_MS + burst * BURST_EVERY_MS;
        self.make(Kind::Sent, sent, recipient);
        if self.chance(0.02) {
            let later = self.rng.random_range(SECOND_MS..20 * MINUTE_MS);
            return self.make(Kind::Bounced, sent + later, recipient);
        }
        let delivered = sent + self.rng.random_range(SECOND_MS / 5..30 * SECOND_MS);
        self.make(Kind::Delivered, delivered, recipient);
        if self.chance(0.0008) {
            let later = self.tail(HOUR_MS);
            self.make(Kind::Complained, delivered + later, recipient);
        }
        while self.chance(0.3) {
            let opened = delivered + self.tail(6 * HOUR_MS);
            self.make(Kind::Opened, opened, recipient);
            for (kind, share, later_ms) in [
                (Kind::Clicked, 0.2, 30 * SECOND_MS),
                (Kind::Replied, 0.005, HOUR_MS),
                (Kind::Unsubscribed, 0.006, 20 * SECOND_MS),
            ] {
                if self.chance(share) {
                    let later = self.tail(later_ms);
                    self.make(kind, opened + later, recipient);
                }
            }
        }
    }

    fn make(&mut self, kind: Kind, at_ms: i64, recipient: u32) {
        if at_ms < self.now_ms && self.events.len() < self.count {
            let id = scattered(self.events.len() as u64);
            self.events.push(Made { at_ms, id, recipient, kind: kind as u8 });
        }
    }

    fn chance(&mut self, share: f64) -> bool {
        self.rng.random_bool(share)
    }

    /// A delay that is mostly short, and sometimes very long: up to a hundred times the median.
    fn tail(&mut self, median_ms: i64) -> i64 {
        let uniform: f64 = self.rng.random_range(0.01..1.0);
        (median_ms as f64 * (1.0 / uniform - 1.0)) as i64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    const NOW_MS: i64 = 1_790_000_000_000;

    fn sent(mix: &Mix) -> Vec<serde_json::Value> {
        let lines = mix.batches(500).flat_map(|(count, body)| {
            let lines: Vec<_> = body.lines().map(|line| serde_json::from_str(line).expect("json")).collect();
            assert_eq!(lines.len(), count);
            lines
        });
        lines.collect()
    }

    #[test]
    fn the_mix_has_every_type_repeats_and_times_that_are_shared() {
        let mix = Mix::new("cmp", 20_000, NOW_MS, 1);
        assert_eq!(mix.count(), 20_000);
        assert!(Kind::ALL.iter().all(|kind| mix.count_of(*kind) > 0));
        assert_eq!(Kind::ALL.iter().map(|kind| mix.count_of(*kind)).sum::<usize>(), mix.count());
        let repeats = mix.sent_count() - mix.count();
        assert!((300..500).contains(&repeats), "{repeats}");
        assert!(mix.sharing_a_millisecond() > 5000);
    }

    #[test]
    fn what_is_sent_is_what_the_pages_show_and_repeats_are_exact() {
        let mix = Mix::new("cmp", 1050, NOW_MS, 2);
        let mut by_id = BTreeMap::new();
        for event in sent(&mix) {
            let id = event["id"].as_str().expect("text").to_owned();
            if let Some(before) = by_id.insert(id, event.clone()) {
                assert_eq!(before, event);
            }
        }
        let mut newest_first: Vec<(String, String)> = by_id
            .iter()
            .map(|(id, event)| (event["occurred_at"].as_str().expect("text").to_owned(), id.clone()))
            .collect();
        newest_first.sort();
        newest_first.reverse();
        let pages: Vec<String> = (1..=11).flat_map(|page| mix.page(None, 100, page)).collect();
        assert_eq!(pages, newest_first.into_iter().map(|(_, id)| id).collect::<Vec<_>>());
        assert_eq!(mix.page(None, 100, 11).len(), 50);
        assert_eq!(mix.page(Some(Kind::Sent), 2000, 1).len(), mix.count_of(Kind::Sent));
    }

    #[test]
    fn one_seed_makes_one_mix() {
        let one = |seed| sent(&Mix::new("cmp", 300, NOW_MS, seed));
        assert_eq!(one(3), one(3));
        assert_ne!(one(3), one(4));
    }

    #[test]
    fn contacts_are_apart() {
        assert_eq!((0..1000).map(contact).collect::<BTreeSet<_>>().len(), 1000);
    }
}
