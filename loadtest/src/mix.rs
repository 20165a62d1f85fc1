//! The events of an account, as senders would publish them: campaigns of one size or of all, sends in bursts that share a
//! millisecond, opens and clicks that tail off over weeks, a few of the rest; nearly in the order of their times, one in fifty twice.
//!
//! Nothing is kept: each event follows from the seed and its number alone. So ten million take no memory, threads make them side by
//! side, and what must show is known by making them again ([`shown`]).

pub(crate) mod json;
pub(crate) mod shown;

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

const SECOND_MS: i64 = 1000;
const DAY_MS: i64 = 24 * 3600 * SECOND_MS;

/// How long ago the first event was.
const BEGUN_MS: i64 = 30 * DAY_MS;
/// Events come in bursts: half of a burst in one millisecond, the others one by one behind it.
const BURST_EVENTS: u64 = 64;
const BURST_EVERY_MS: i64 = 400;
const BURST_STEP_MS: i64 = 12;
/// The share of a single campaign's events, in percent, that its blast is; the rest tails off.
const BLAST_PERCENT: u64 = 70;
/// Events out of their order: each anywhere among so many. After so many comes a repeat of an earlier one.
const SHUFFLED_EVENTS: u64 = 50;
/// How far back most repeats reach.
const REPEAT_BACK_MAX: u64 = 5000;
/// Recipients there are beside so many events.
const EVENTS_PER_CONTACT: u64 = 3;
/// The campaigns of [`Shape::Small`].
const SMALL_CAMPAIGNS: u64 = 100_000;
/// The most campaigns of [`Shape::Mixed`]; there are fewer where there are few events.
const MIXED_CAMPAIGNS_MAX: u64 = 30_000;
/// The campaigns of the one contact.
const CONTACT_CAMPAIGNS: u64 = 5;

/// Which campaigns the events belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Shape {
    /// All to one campaign.
    Giant,
    /// To campaigns of all sizes, from one with a fifteenth of all events to tens of thousands of small ones.
    Mixed,
    /// To a hundred thousand small ones, interleaved.
    Small,
    /// All to one campaign, stamped the same second.
    SameSecond,
    /// Those of one contact, a test mailbox, in some campaigns.
    Contact,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Shape::Giant => "giant",
            Shape::Mixed => "mixed",
            Shape::Small => "small",
            Shape::SameSecond => "same-second",
            Shape::Contact => "contact",
        })
    }
}

/// The types of the campaign stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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

use Kind::{Bounced, Clicked, Complained, Delivered, Opened, Replied, Sent, Unsubscribed};

impl Kind {
    pub(crate) const ALL: [Kind; 8] =
        [Sent, Delivered, Opened, Clicked, Replied, Bounced, Unsubscribed, Complained];
    /// A type of which even a large campaign has few.
    pub(crate) const RARE: Kind = Complained;

    /// As the endpoints name it.
    pub(crate) fn shown(self) -> &'static str {
        match self {
            Sent => "sent",
            Delivered => "delivered",
            Opened => "opened",
            Clicked => "clicked",
            Replied => "replied",
            Bounced => "bounced",
            Unsubscribed => "unsubscribed",
            Complained => "complained",
        }
    }

    /// Whether the contact timeline shows it.
    pub(crate) fn is_on_contact(self) -> bool {
        !matches!(self, Replied | Complained)
    }
}

/// The types of events, each with how many of 10,000 are of it.
type Shares = [(Kind, u64); 8];

/// While a campaign goes out.
const BLAST: Shares = [
    (Sent, 4880),
    (Delivered, 4700),
    (Opened, 250),
    (Clicked, 30),
    (Replied, 2),
    (Bounced, 120),
    (Unsubscribed, 10),
    (Complained, 8),
];
/// Afterwards.
const TAIL: Shares = [
    (Sent, 0),
    (Delivered, 60),
    (Opened, 7900),
    (Clicked, 1800),
    (Replied, 60),
    (Bounced, 70),
    (Unsubscribed, 80),
    (Complained, 30),
];

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// The number that its id is made of.
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) at_ms: i64,
    pub(crate) campaign: u32,
    pub(crate) contact: u32,
    /// What its words are chosen by.
    words: u64,
}

/// Events by their number, oldest first.
#[derive(Clone, Debug)]
pub(crate) struct Mix {
    pub(crate) shape: Shape,
    /// What the names of its campaigns begin with: the mixes of one account are to differ in it.
    pub(crate) name: String,
    /// The account that the events name; none where a key says whose they are.
    pub(crate) account: Option<String>,
    count: u64,
    campaigns: u64,
    /// Where the numbers of the campaigns of [`Shape::Mixed`] are drawn: the logarithm of one more than there are.
    campaigns_ln: f64,
    now_ms: i64,
    salt: u64,
}

impl Mix {
    /// `count` events, the last of them before `now_ms`.
    pub(crate) fn new(shape: Shape, name: &str, count: u64, now_ms: i64, seed: u64) -> Mix {
        let campaigns = match shape {
            Shape::Giant | Shape::SameSecond => 1,
            Shape::Contact => CONTACT_CAMPAIGNS,
            Shape::Small => SMALL_CAMPAIGNS.min(count.max(1)),
            Shape::Mixed => (count / 20).clamp(1, MIXED_CAMPAIGNS_MAX),
        };
        Mix {
            shape,
            name: name.to_owned(),
            account: None,
            count,
            campaigns,
            campaigns_ln: (campaigns as f64 + 1.0).ln(),
            now_ms,
            salt: scattered(seed.wrapping_add(shape as u64)),
        }
    }

    /// How many events there are.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// What was given as now.
    pub(crate) fn now_ms(&self) -> i64 {
        self.now_ms
    }

    /// How many campaigns there are, at most: the smallest may have got no event.
    pub(crate) fn campaigns(&self) -> u64 {
        self.campaigns
    }

    /// How many are published, repeats included.
    pub(crate) fn arrivals(&self) -> u64 {
        self.count + self.count / SHUFFLED_EVENTS
    }

    /// The event that is published as number `arrival`, below [`Mix::arrivals`].
    pub(crate) fn arrival(&self, arrival: u64) -> Event {
        let (block, place) = (arrival / (SHUFFLED_EVENTS + 1), arrival % (SHUFFLED_EVENTS + 1));
        let number = if place < SHUFFLED_EVENTS {
            self.shuffled(block * SHUFFLED_EVENTS + place)
        } else {
            // Most repeats come soon, some out of the blue.
            let sent = (block + 1) * SHUFFLED_EVENTS;
            let chance = scattered(self.salt ^ !arrival);
            let reach = if chance % 10 < 9 { sent.min(REPEAT_BACK_MAX) } else { sent };
            self.shuffled(sent - 1 - (chance >> 8) % reach)
        };
        self.event(number)
    }

    /// The numbers of a whole block in another order; what is left at the end stays as it is.
    fn shuffled(&self, number: u64) -> u64 {
        let (block, place) = (number / SHUFFLED_EVENTS, number % SHUFFLED_EVENTS);
        if (block + 1) * SHUFFLED_EVENTS > self.count {
            return number;
        }
        // 7, 11, … share no factor with 50, so every place has one other.
        let chance = scattered(self.salt ^ (block << 1));
        let step = [7, 11, 13, 17][(chance % 4) as usize];
        block * SHUFFLED_EVENTS + (place * step + (chance >> 8) % SHUFFLED_EVENTS) % SHUFFLED_EVENTS
    }

    /// The event of this number, below [`Mix::count`]. Times never fall as numbers grow.
    pub(crate) fn event(&self, number: u64) -> Event {
        // Another number for each number, so ids never meet.
        let id = scattered(number ^ self.salt);
        let words = scattered(id);
        let (is_blast, at_ms) = self.time(number, words);
        let kind = draw(if is_blast { &BLAST } else { &TAIL }, words >> 32);
        Event {
            id,
            kind,
            at_ms,
            campaign: self.campaign(number, scattered(words)) as u32,
            contact: self.contact(id) as u32,
            words,
        }
    }

    /// When, and whether that is while its campaign goes out.
    fn time(&self, number: u64, chance: u64) -> (bool, i64) {
        let begun_ms = self.now_ms - BEGUN_MS;
        let (burst, place) = (number / BURST_EVENTS, number % BURST_EVENTS);
        let later_ms = place.saturating_sub(BURST_EVENTS / 2 - 1).cast_signed() * BURST_STEP_MS;
        let is_blast = chance % 100 < BLAST_PERCENT;
        match self.shape {
            Shape::SameSecond => (is_blast, begun_ms - begun_ms.rem_euclid(SECOND_MS)),
            Shape::Giant => {
                let blast = self.count * BLAST_PERCENT / 100;
                if number < blast {
                    return (true, begun_ms + burst.cast_signed() * BURST_EVERY_MS + later_ms);
                }
                let blast_ms = (blast / BURST_EVENTS + 2).cast_signed() * BURST_EVERY_MS;
                let done = (number - blast) as f64 / (self.count - blast) as f64;
                (false, begun_ms + blast_ms + ((BEGUN_MS - blast_ms) as f64 * done.powi(3)) as i64)
            }
            // Many campaigns at once: some are going out at any time.
            Shape::Mixed | Shape::Small | Shape::Contact => {
                let bursts = self.count / BURST_EVENTS + 1;
                let burst_ms = (BEGUN_MS - SECOND_MS) as f64 / bursts as f64 * burst as f64;
                (is_blast, begun_ms + burst_ms as i64 + later_ms)
            }
        }
    }

    fn campaign(&self, number: u64, chance: u64) -> u64 {
        match self.shape {
            Shape::Giant | Shape::SameSecond => 0,
            Shape::Contact => chance % self.campaigns,
            // Round by round, each round another way.
            Shape::Small => {
                let round = scattered(self.salt ^ !(number / self.campaigns));
                (number % self.campaigns + round) % self.campaigns
            }
            // The n-th largest has about 1/n of the largest.
            Shape::Mixed => {
                let share = (chance >> 11) as f64 / (1_u64 << 53) as f64;
                ((share * self.campaigns_ln).exp() as u64).saturating_sub(1).min(self.campaigns - 1)
            }
        }
    }

    fn contact(&self, id: u64) -> u64 {
        match self.shape {
            Shape::Contact => 0,
            _ => scattered(id ^ self.salt) % (self.count / EVENTS_PER_CONTACT).max(1),
        }
    }

    /// A campaign's id.
    pub(crate) fn campaign_id(&self, campaign: u32) -> String {
        format!("{}_{campaign}", self.name)
    }

    /// A contact's id: the same contacts in all mixes, but for the test mailbox.
    pub(crate) fn contact_id(&self, contact: u32) -> Uuid {
        let number = match self.shape {
            Shape::Contact => u64::MAX - self.salt % 1000,
            _ => u64::from(contact),
        };
        let bits = u128::from(scattered(number)) << 64 | u128::from(scattered(!number));
        uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid()
    }
}

impl Event {
    /// Its id. All are of one length, so their order as text is that of the numbers.
    pub(crate) fn shown_id(&self) -> String {
        format!("evt_{:016x}", self.id)
    }
}

/// The kind that a chance falls on.
fn draw(shares: &Shares, chance: u64) -> Kind {
    let mut left = chance % 10_000;
    for (kind, share) in shares {
        if left < *share {
            return *kind;
        }
        left -= share;
    }
    Opened
}

/// Another number for each number, as if by chance (the last steps of SplitMix64).
pub(crate) fn scattered(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const NOW_MS: i64 = 1_790_000_000_000;
    const SHAPES: [Shape; 5] = [Shape::Giant, Shape::Mixed, Shape::Small, Shape::SameSecond, Shape::Contact];

    fn mix(shape: Shape, count: u64) -> Mix {
        Mix::new(shape, "cmp", count, NOW_MS, 1)
    }

    #[test]
    fn shares_are_of_ten_thousand() {
        for shares in [BLAST, TAIL] {
            assert_eq!(shares.iter().map(|(_, share)| share).sum::<u64>(), 10_000);
        }
    }

    #[test]
    fn every_event_arrives_and_some_arrive_twice() {
        for (shape, count) in SHAPES.into_iter().flat_map(|shape| [(shape, 5050), (shape, 33)]) {
            let mix = mix(shape, count);
            let mut seen = BTreeMap::new();
            for arrival in 0..mix.arrivals() {
                *seen.entry(mix.arrival(arrival).id).or_insert(0) += 1;
            }
            assert_eq!(seen.len() as u64, count, "{shape}");
            assert_eq!(seen.values().sum::<u64>(), count + count / 50);
        }
    }

    #[test]
    fn times_never_fall_and_stay_in_the_past() {
        for shape in SHAPES {
            let mix = mix(shape, 100_000);
            let times: Vec<i64> = (0..mix.count()).map(|number| mix.event(number).at_ms).collect();
            assert!(times.is_sorted(), "{shape}");
            assert!(times[0] >= NOW_MS - BEGUN_MS - SECOND_MS && times[99_999] < NOW_MS, "{shape}");
            let sharing = times.chunk_by(|one, next| one == next).map(<[i64]>::len).filter(|n| *n > 1);
            assert!(sharing.sum::<usize>() > 30_000, "{shape}");
        }
    }

    #[test]
    fn one_seed_makes_one_mix() {
        let one = |seed| {
            let mix = Mix::new(Shape::Mixed, "cmp", 300, NOW_MS, seed);
            (0..mix.arrivals()).map(|arrival| mix.arrival(arrival)).collect::<Vec<_>>()
        };
        assert_eq!(one(3), one(3));
        assert_ne!(one(3), one(4));
    }

    #[test]
    fn campaigns_have_the_sizes_of_their_shape() {
        let sizes = |shape| {
            let mix = mix(shape, 1_000_000);
            let mut sizes = vec![0_u32; mix.campaigns() as usize];
            for number in 0..mix.count() {
                sizes[mix.event(number).campaign as usize] += 1;
            }
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            sizes
        };
        assert_eq!(sizes(Shape::Giant), [1_000_000]);
        assert!(sizes(Shape::Small).iter().all(|size| *size == 10));
        let mixed = sizes(Shape::Mixed);
        assert!((50_000..150_000).contains(&mixed[0]), "{}", mixed[0]);
        assert!((500..2000).contains(&mixed[100]), "{}", mixed[100]);
        assert!(mixed.iter().filter(|size| (1..20).contains(*size)).count() > 10_000);
    }
}
