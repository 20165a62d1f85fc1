//! Where a day's traffic falls: campaigns of very different sizes, most of them sent at full hours, hashed as they really are over the
//! partitions of the internal topic, and by Murmur3 token over the nodes of the store.
//!
//! A campaign's timeline has one owner and, at any moment, one partition of the store that takes its new rows; so the largest
//! blast shows in the hottest partition and on the hottest node. Contacts are many and small and spread by themselves: a
//! million of them are hashed for all.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use scylla::routing::partitioner::{Murmur3Partitioner, Partitioner};
use serde::Serialize;
use timeline::tally::{FIRST_PART, PART_ROWS_MAX};
use timeline::{AccountId, Id, TimelineId};
use uuid::Uuid;

/// Partitions of the internal topic: a timeline must not move, so there are never more.
pub(crate) const PARTITIONS: usize = 64;
/// Five minutes.
pub(crate) const SLOT_S: f64 = 300.0;
const SLOTS: usize = 288;
const CONTACTS_HASHED: usize = 1_000_000;
/// How many campaigns of a thousand begin in each hour of the day.
const STARTS: [u32; 24] =
    [5, 5, 5, 5, 10, 20, 45, 75, 100, 130, 115, 80, 65, 60, 60, 55, 45, 35, 30, 20, 15, 10, 5, 5];

/// A day's traffic, as assumed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traffic {
    pub(crate) events: f64,
    pub(crate) campaigns: usize,
    /// The spread of the campaigns' sizes: sigma of a lognormal law.
    pub(crate) size_sigma: f64,
    pub(crate) campaign_share: f64,
    pub(crate) blast_minutes: f64,
    pub(crate) blast_share: f64,
    pub(crate) reaction_hours: f64,
    pub(crate) seed: u64,
}

/// How a day falls.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Placement {
    pub(crate) events_per_s_mean: f64,
    /// In the busiest five minutes.
    pub(crate) events_per_s_peak: f64,
    /// Rows of campaigns and contacts, in the same five minutes.
    pub(crate) rows_per_s_peak: f64,
    pub(crate) campaign_events_median: f64,
    pub(crate) campaign_events_max: f64,
    /// The largest campaign in its busiest five minutes: all to one owner, and to one partition of the store at a time.
    pub(crate) campaign_rows_per_s_max: f64,
    /// The fullest partition of the internal topic, in the day's worst five minutes of any.
    pub(crate) partition_rows_per_s_max: f64,
    /// The fullest partition beside the mean, in the busiest five minutes and over the day.
    pub(crate) partition_skew_peak: f64,
    pub(crate) partition_skew_day: f64,
    /// Beyond so many copies of ingest the fullest partition decides, not their number.
    pub(crate) copies_useful: f64,
    #[serde(skip)]
    campaigns: Vec<Campaign>,
    #[serde(skip)]
    contacts: Contacts,
    #[serde(skip)]
    peak_slot: usize,
}

/// How a day falls on so many nodes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Nodes {
    pub(crate) nodes: usize,
    /// The fullest node's rows beside the mean: what it keeps, and what it writes in the busiest five minutes.
    pub(crate) kept_skew: f64,
    pub(crate) written_skew_peak: f64,
}

#[derive(Clone, Debug)]
struct Campaign {
    timeline: TimelineId,
    events: f64,
    begins_slot: f64,
}

impl Placement {
    pub(crate) fn of(traffic: &Traffic) -> Placement {
        let campaigns = campaigns(traffic);
        let shape = Shape::of(traffic);
        let mut by_partition = vec![[0.0; PARTITIONS]; SLOTS];
        let mut of_campaigns = [0.0; SLOTS];
        let mut campaign_rows_per_s_max: f64 = 0.0;
        for campaign in &campaigns {
            let partition = campaign.timeline.partition(PARTITIONS as u32) as usize;
            for (slot, share) in shape.shares(campaign.begins_slot) {
                let rows_per_s = campaign.events * share / SLOT_S;
                by_partition[slot][partition] += rows_per_s;
                of_campaigns[slot] += rows_per_s;
                campaign_rows_per_s_max = campaign_rows_per_s_max.max(rows_per_s);
            }
        }
        // Events without a campaign come evenly; every event has a row on its contact's timeline.
        let others_per_s = traffic.events * (1.0 - traffic.campaign_share) / 86_400.0;
        let contacts = Contacts::hashed();
        for (slot, partitions) in by_partition.iter_mut().enumerate() {
            for (load, share) in partitions.iter_mut().zip(contacts.shares) {
                *load += (of_campaigns[slot] + others_per_s) * share;
            }
        }
        let peak_slot =
            (0..SLOTS).max_by(|one, other| of_campaigns[*one].total_cmp(&of_campaigns[*other])).unwrap_or(0);
        let mut day = [0.0; PARTITIONS];
        for partitions in &by_partition {
            for (sum, load) in day.iter_mut().zip(partitions) {
                *sum += load;
            }
        }
        let mut sizes: Vec<f64> = campaigns.iter().map(|campaign| campaign.events).collect();
        sizes.sort_unstable_by(f64::total_cmp);
        let rows_per_s_peak: f64 = by_partition[peak_slot].iter().sum();
        let events_per_s_peak = of_campaigns[peak_slot] + others_per_s;
        Placement {
            events_per_s_mean: traffic.events / 86_400.0,
            events_per_s_peak,
            rows_per_s_peak,
            campaign_events_median: sizes[sizes.len() / 2],
            campaign_events_max: sizes[sizes.len() - 1],
            campaign_rows_per_s_max,
            partition_rows_per_s_max: by_partition.iter().flatten().copied().fold(0.0, f64::max),
            partition_skew_peak: skew(&by_partition[peak_slot]),
            partition_skew_day: skew(&day),
            copies_useful: PARTITIONS as f64 / skew(&by_partition[peak_slot]),
            campaigns,
            contacts,
            peak_slot,
        }
    }

    /// The same day on `nodes` nodes, each row on `replicas` of them.
    pub(crate) fn on_nodes(&self, nodes: usize, replicas: usize, traffic: &Traffic, tokens: usize) -> Nodes {
        let ring = Ring::of(nodes, replicas, tokens, traffic.seed);
        let mut kept = vec![0.0; nodes];
        for token in &self.contacts.tokens {
            ring.each_replica(*token, |node| kept[node] += 1.0 / CONTACTS_HASHED as f64);
        }
        let mut written: Vec<f64> = kept.iter().map(|share| share * self.events_per_s_peak).collect();
        let shape = Shape::of(traffic);
        for campaign in &self.campaigns {
            let rows: f64 = shape
                .shares(campaign.begins_slot)
                .filter(|(slot, _)| *slot == self.peak_slot)
                .map(|(_, share)| share * campaign.events)
                .sum();
            // One part after another takes the new rows.
            let parts = (rows / PART_ROWS_MAX as f64).ceil() as u32;
            for part in 0..parts {
                let token = token(&campaign.timeline, part);
                ring.each_replica(token, |node| written[node] += rows / f64::from(parts) / SLOT_S);
            }
        }
        Nodes { nodes, kept_skew: skew(&kept), written_skew_peak: skew(&written) }
    }

    /// What of a day's rows each campaign has.
    pub(crate) fn campaign_events(&self) -> impl Iterator<Item = f64> {
        self.campaigns.iter().map(|campaign| campaign.events)
    }
}

/// The greatest beside the mean.
fn skew(loads: &[f64]) -> f64 {
    loads.iter().copied().fold(0.0, f64::max) * loads.len() as f64 / loads.iter().sum::<f64>()
}

fn campaigns(traffic: &Traffic) -> Vec<Campaign> {
    let mut rng = StdRng::seed_from_u64(traffic.seed);
    let mut campaigns = Vec::with_capacity(traffic.campaigns);
    for number in 0..traffic.campaigns {
        let account = AccountId::parse(&format!("account-{}", number % 5000)).expect("an account id");
        let campaign = Id::parse(&format!("cmp_{number}")).expect("an id");
        let hour = f64::from(pick_hour(&mut rng));
        // Most are sent at a full or a half hour.
        let minute = match rng.random_range(0..10) {
            0..5 => 0.0,
            5..7 => 30.0,
            _ => rng.random_range(0.0..60.0),
        };
        campaigns.push(Campaign {
            timeline: TimelineId::campaign(&account, &campaign),
            events: (traffic.size_sigma * normal(&mut rng)).exp(),
            begins_slot: (hour * 3600.0 + minute * 60.0) / SLOT_S,
        });
    }
    let scale = traffic.events * traffic.campaign_share / campaigns.iter().map(|one| one.events).sum::<f64>();
    campaigns.iter_mut().for_each(|campaign| campaign.events *= scale);
    campaigns
}

fn pick_hour(rng: &mut StdRng) -> u8 {
    let mut left = rng.random_range(0..STARTS.iter().sum());
    for (hour, share) in (0..).zip(STARTS) {
        if left < share {
            return hour;
        }
        left -= share;
    }
    0
}

/// A number of the standard normal law (Box and Muller).
fn normal(rng: &mut StdRng) -> f64 {
    let (radius, angle): (f64, f64) = (rng.random_range(f64::EPSILON..1.0), rng.random());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

/// How a campaign's events of a day are spread over the slots from its beginning: the blast evenly, the rest on top of it,
/// falling by half every few hours. What falls beyond the day stands for yesterday's campaigns.
struct Shape(Vec<f64>);

impl Shape {
    fn of(traffic: &Traffic) -> Shape {
        let blast_slots = ((traffic.blast_minutes * 60.0 / SLOT_S).round() as usize).clamp(1, SLOTS);
        let kept = 0.5_f64.powf(SLOT_S / 3600.0 / traffic.reaction_hours);
        let mut shares: Vec<f64> = (0..SLOTS).map(|slot| kept.powf(slot as f64)).collect();
        let sum: f64 = shares.iter().sum();
        for (slot, share) in shares.iter_mut().enumerate() {
            let blast = if slot < blast_slots { traffic.blast_share / blast_slots as f64 } else { 0.0 };
            *share = *share / sum * (1.0 - traffic.blast_share) + blast;
        }
        Shape(shares)
    }

    fn shares(&self, begins_slot: f64) -> impl Iterator<Item = (usize, f64)> {
        self.0.iter().enumerate().map(move |(at, share)| ((begins_slot as usize + at) % SLOTS, *share))
    }
}

/// Contacts, hashed: which share of them each partition has, and their tokens.
#[derive(Clone, Debug)]
struct Contacts {
    shares: [f64; PARTITIONS],
    tokens: Vec<i64>,
}

impl Contacts {
    fn hashed() -> Contacts {
        let account = AccountId::parse("account").expect("an account id");
        let mut contacts =
            Contacts { shares: [0.0; PARTITIONS], tokens: Vec::with_capacity(CONTACTS_HASHED) };
        let mut rng = StdRng::seed_from_u64(0);
        for _ in 0..CONTACTS_HASHED {
            let timeline = TimelineId::contact(&account, Uuid::from_u128(rng.random()));
            let partition = timeline.partition(PARTITIONS as u32) as usize;
            contacts.shares[partition] += 1.0 / CONTACTS_HASHED as f64;
            contacts.tokens.push(token(&timeline, FIRST_PART));
        }
        contacts
    }
}

/// Where the store keeps a part of a timeline: the token of its partition key, as CQL writes a key of several columns.
fn token(timeline: &TimelineId, part: u32) -> i64 {
    let (subject, part) = (timeline.subject.to_string(), part.to_be_bytes());
    let mut key = Vec::with_capacity(128);
    for column in [timeline.account.as_str().as_bytes(), subject.as_bytes(), &part] {
        key.extend((column.len() as u16).to_be_bytes());
        key.extend(column);
        key.push(0);
    }
    Murmur3Partitioner.hash_one(&key).value()
}

/// Nodes on a ring of tokens: a key is kept by the next so many different ones.
struct Ring {
    tokens: Vec<(i64, usize)>,
    replicas: usize,
}

impl Ring {
    fn of(nodes: usize, replicas: usize, tokens_per_node: usize, seed: u64) -> Ring {
        let mut rng = StdRng::seed_from_u64(seed);
        let nodes_of_tokens = (0..nodes).flat_map(|node| std::iter::repeat_n(node, tokens_per_node));
        let mut tokens: Vec<(i64, usize)> = nodes_of_tokens.map(|node| (rng.random(), node)).collect();
        tokens.sort_unstable();
        Ring { tokens, replicas: replicas.min(nodes) }
    }

    fn each_replica(&self, key: i64, mut take: impl FnMut(usize)) {
        let first = self.tokens.partition_point(|(token, _)| *token < key);
        let mut taken = Vec::with_capacity(self.replicas);
        for (_, node) in self.tokens[first..].iter().chain(&self.tokens) {
            if !taken.contains(node) {
                take(*node);
                taken.push(*node);
                if taken.len() == self.replicas {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRAFFIC: Traffic = Traffic {
        events: 1e8,
        campaigns: 2000,
        size_sigma: 2.0,
        campaign_share: 0.95,
        blast_minutes: 60.0,
        blast_share: 0.67,
        reaction_hours: 4.0,
        seed: 1,
    };

    #[test]
    fn every_event_of_the_day_is_placed_and_the_same_again() {
        let placement = Placement::of(&TRAFFIC);
        let sum: f64 = placement.campaign_events().sum();
        assert!((sum / 0.95e8 - 1.0).abs() < 1e-9, "{sum}");
        let shape = Shape::of(&TRAFFIC).0.iter().sum::<f64>();
        assert!((shape - 1.0).abs() < 1e-9, "{shape}");
        assert!(placement.events_per_s_peak > 1.5 * placement.events_per_s_mean, "{placement:?}");
        assert!((1.0..64.0).contains(&placement.partition_skew_peak));
        let again = Placement::of(&TRAFFIC);
        assert_eq!(placement.partition_rows_per_s_max.to_bits(), again.partition_rows_per_s_max.to_bits());
    }

    #[test]
    fn more_even_campaigns_fall_more_evenly() {
        let even = Placement::of(&Traffic { size_sigma: 0.5, campaigns: 20_000, ..TRAFFIC });
        assert!(even.partition_skew_peak < Placement::of(&TRAFFIC).partition_skew_peak);
        let nodes = even.on_nodes(9, 3, &TRAFFIC, 256);
        assert!(nodes.kept_skew < 1.2 && nodes.written_skew_peak < 1.3, "{nodes:?}");
    }

    #[test]
    fn a_key_is_kept_by_different_nodes() {
        let ring = Ring::of(5, 3, 16, 1);
        for key in [0, i64::MAX, i64::MIN] {
            let mut nodes = Vec::new();
            ring.each_replica(key, |node| nodes.push(node));
            nodes.sort_unstable();
            nodes.dedup();
            assert_eq!(nodes.len(), 3);
        }
    }
}
