//! The whole of place and own on a store and a log that are simulated: random histories in which every request takes its
//! own random time, fails before or after it was applied, consumers crash between any two awaits, partitions are handed on while
//! their old owner goes on writing (a zombie), a replay begins in the middle, opens come before their sends, and repeats come
//! anywhere. At rest no event is missing, none is there twice, and every page and total is that of a plain model.
//!
//! Time is simulated too: a history is a function of its seed. `BACKSTAMP_HISTORIES=1000` runs as many; a failing seed is named.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

#[path = "histories/sim_store.rs"]
mod sim_store;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ingest::own::{OwnBatch, Owner, OwnerSettings};
use ingest::place::{Place, RawRecord, finish_joined};
use query::read::{PageRequest, read_page};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sim_store::SimStore;
use timeline::filter::ListManagementFilter;
use timeline::row::{decode_placed, encode_placed};
use timeline::tally::Sizes;
use timeline::time::DAY_MS;
use timeline::{AccountId, Id, Order, Span, Subject, TimelineId, Timestamp, TypeSet};
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::sleep;
use uuid::Uuid;

const NOW: Timestamp = Timestamp(1_790_000_000_000);
const RETENTION_MS: i64 = 180 * DAY_MS;
const SIZES: Sizes =
    Sizes { leaf_rows_max: 3, node_leaves_max: 3, scan_rows_max: 4, part_rows_max: 12, pair_rows_min: 8 };
const CONTACTS: [&str; 3] = [
    "00000000-0000-4000-8000-000000000001",
    "00000000-0000-4000-8000-000000000002",
    "00000000-0000-4000-8000-000000000003",
];

/// What is done wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Tallies are written whatever their stamp.
    NoEpoch,
    /// A worker that lost its partition still commits.
    CommitAfterRevoke,
    /// The offset is committed before the work is done.
    CommitFirst,
    /// Nobody asks whether the partition is still ours once its epoch is taken.
    LateEpoch,
    /// A count of rows misses what stands in the store.
    MemoryOnly,
}

#[derive(Default)]
struct Topic {
    partitions: Vec<Vec<Vec<u8>>>,
    committed: Vec<usize>,
}

impl Topic {
    fn new(partitions: usize) -> Topic {
        Topic { partitions: vec![Vec::new(); partitions], committed: vec![0; partitions] }
    }

    fn is_done(&self) -> bool {
        self.partitions.iter().zip(&self.committed).all(|(records, done)| *done >= records.len())
    }
}

#[derive(Clone)]
struct World {
    store: Arc<SimStore>,
    raw: Rc<RefCell<Topic>>,
    owned: Rc<RefCell<Topic>>,
    rng: Rc<RefCell<StdRng>>,
    fault: Fault,
}

struct Worker {
    task: JoinHandle<()>,
    revoked: Rc<Cell<bool>>,
}

impl World {
    fn random(&self, range: std::ops::Range<u64>) -> u64 {
        self.rng.borrow_mut().random_range(range)
    }

    async fn idle(&self) {
        let ms = self.random(1..30);
        sleep(Duration::from_millis(ms)).await;
    }

    /// The next records of a partition from `at`, or none yet.
    fn poll(&self, topic: &RefCell<Topic>, partition: usize, at: usize) -> Vec<Vec<u8>> {
        let count = usize::try_from(self.random(1..6)).unwrap();
        let topic = topic.borrow();
        topic.partitions[partition].get(at..).unwrap_or_default().iter().take(count).cloned().collect()
    }

    fn commit(&self, topic: &RefCell<Topic>, partition: usize, offset: usize, revoked: &Cell<bool>) {
        if !revoked.get() || self.fault == Fault::CommitAfterRevoke {
            let committed = &mut topic.borrow_mut().committed[partition];
            *committed = (*committed).max(offset);
        }
    }

    fn order_recount(&self, timeline: &TimelineId) {
        self.order(timeline, &Order::Recount(timeline.clone()));
    }

    fn order(&self, timeline: &TimelineId, order: &Order) {
        let mut owned = self.owned.borrow_mut();
        let to = timeline.partition(u32::try_from(owned.partitions.len()).unwrap()) as usize;
        owned.partitions[to].push(order.encode());
    }

    /// Waits until owners have done what is in their topic now.
    async fn owners_done(&self) {
        let ends: Vec<usize> = self.owned.borrow().partitions.iter().map(Vec::len).collect();
        while !self.owned.borrow().committed.iter().zip(&ends).all(|(done, end)| done >= end) {
            self.idle().await;
        }
    }

    /// Forgets a contact as `backstamp forget-contact` does.
    async fn forget(&self, account: &AccountId, contact: Uuid) {
        self.store.forget(account, contact);
        let partitions = self.owned.borrow().partitions.len();
        for partition in 0..partitions {
            self.idle().await;
            let order = Order::Forget { account: account.clone(), contact };
            self.owned.borrow_mut().partitions[partition].push(order.encode());
        }
        self.owners_done().await;
        let store = self.store.as_ref();
        let rows = loop {
            self.idle().await;
            if let Ok(rows) = operate::views::rows_of_contact(store, account, contact).await {
                break rows;
            }
        };
        let order = |timeline: TimelineId, keys| {
            self.order(&timeline, &Order::Erase { timeline: timeline.clone(), contact, keys });
        };
        let of_contact = |timeline: &TimelineId| !matches!(timeline.subject, Subject::Campaign(_));
        let (of_contact, of_campaigns): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|(timeline, _)| of_contact(timeline));
        // The contact's own last: they say which the others are.
        for rows in [of_campaigns, of_contact] {
            for (timeline, keys) in rows {
                order(timeline, keys.into_iter().collect());
            }
            self.owners_done().await;
        }
    }

    fn start_placer(&self, partition: usize) -> Worker {
        let (world, revoked) = (self.clone(), Rc::new(Cell::new(false)));
        let gate = revoked.clone();
        let task = tokio::task::spawn_local(async move {
            let mut place = Place::new(world.store.clone(), ListManagementFilter::default(), RETENTION_MS);
            let mut at = world.raw.borrow().committed[partition];
            loop {
                world.idle().await;
                let batch = world.poll(&world.raw, partition, at);
                if batch.is_empty() {
                    continue;
                }
                if world.fault == Fault::CommitFirst {
                    world.commit(&world.raw, partition, at + batch.len(), &gate);
                }
                let records: Vec<RawRecord<'_>> =
                    batch.iter().map(|value| RawRecord { value, appended_at: NOW }).collect();
                let placed = place.work(NOW, &records).await;
                assert!(placed.refused.is_empty(), "{:?}", placed.refused);
                for row in placed.rows {
                    world.idle().await;
                    let mut owned = world.owned.borrow_mut();
                    let to = row.timeline.partition(u32::try_from(owned.partitions.len()).unwrap()) as usize;
                    owned.partitions[to].push(encode_placed(&[row], NOW));
                }
                finish_joined(world.store.as_ref(), &placed.joined).await;
                world.idle().await;
                at += batch.len();
                world.commit(&world.raw, partition, at, &gate);
            }
        });
        Worker { task, revoked }
    }

    fn start_owner(&self, partition: usize, claim: u64) -> Worker {
        let (world, revoked) = (self.clone(), Rc::new(Cell::new(false)));
        let gate = revoked.clone();
        let number = i32::try_from(partition).unwrap();
        let task = tokio::task::spawn_local(async move {
            let settings = OwnerSettings { retention_ms: RETENTION_MS, keys_held_max: 40, sizes: SIZES };
            let mut owner = Owner::new(world.store.clone(), "sim", settings);
            let mut at = world.owned.borrow().committed[partition];
            world.idle().await;
            owner.take_over(&[(number, claim)]).await;
            // The broker is asked whether the partition still is ours.
            if gate.get() && world.fault != Fault::LateEpoch {
                return;
            }
            loop {
                world.idle().await;
                let batch = world.poll(&world.owned, partition, at);
                if batch.is_empty() {
                    continue;
                }
                if world.fault == Fault::CommitFirst {
                    world.commit(&world.owned, partition, at + batch.len(), &gate);
                }
                let (orders, rows): (Vec<_>, Vec<_>) =
                    batch.iter().partition(|message| Order::is_order(message));
                for order in orders {
                    owner.obey(NOW, number, &Order::decode(order).unwrap()).await;
                }
                let rows = rows.into_iter().flat_map(|message| decode_placed(message).unwrap().0).collect();
                owner.work(NOW, vec![OwnBatch { partition: number, claim, rows }]).await;
                world.idle().await;
                at += batch.len();
                world.commit(&world.owned, partition, at, &gate);
            }
        });
        Worker { task, revoked }
    }
}

/// The raw events of a history with the partitions that they come by, and what must be there at the end.
struct Plan {
    records: Vec<(usize, Vec<u8>)>,
    /// By timeline: position and type.
    want: BTreeMap<TimelineId, BTreeSet<(i64, String, u8)>>,
}

fn plan(rng: &mut StdRng, events: usize) -> Plan {
    let account = AccountId::parse("acme").unwrap();
    let mut plan = Plan { records: Vec::new(), want: BTreeMap::new() };
    let publish = |plan: &mut Plan,
                   rng: &mut StdRng,
                   json: String,
                   key: (i64, String, u8),
                   campaign: &str,
                   contact: &str| {
        let campaign = TimelineId::campaign(&account, &Id::parse(campaign).unwrap());
        let contact = TimelineId::contact(&account, contact.parse().unwrap());
        plan.want.entry(campaign).or_default().insert(key.clone());
        plan.want.entry(contact).or_default().insert(key);
        for _ in 0..1 + usize::from(rng.random_bool(0.3)) {
            plan.records.push((rng.random_range(0..3), json.clone().into_bytes()));
        }
    };
    let time = |rng: &mut StdRng| NOW.0 - 10_000 + rng.random_range(0..8) * 1000;
    let message_of = |message: usize| (format!("c{}", message % 2), CONTACTS[message % 3]);
    for message in 0..8 {
        let ((campaign, contact), at) = (message_of(message), time(rng));
        let json = format!(
            r#"{{"id":"send{message}","account_id":"acme","type":"send","occurred_at":"{}","message_id":"m{message}","campaign_id":"{campaign}","contact_id":"{contact}","email":"a@b.example","automation_id":"au","step_id":"s"}}"#,
            Timestamp(at).to_rfc3339(),
        );
        publish(&mut plan, rng, json, (at, format!("send{message}"), 0), &campaign, contact);
    }
    for number in 0..events {
        let (message, at) = (rng.random_range(0..8), time(rng));
        let (campaign, contact) = message_of(message);
        // All, some or nothing of what the send knows.
        let own = match rng.random_range(0..4) {
            0 => format!(r#","campaign_id":"{campaign}","contact_id":"{contact}""#),
            1 => format!(r#","campaign_id":"{campaign}""#),
            2 => format!(r#","contact_id":"{contact}""#),
            _ => String::new(),
        };
        let (name, of) = [("open", 2), ("delivery", 1), ("reply", 4)][rng.random_range(0..3)];
        let json = format!(
            r#"{{"id":"e{number}","account_id":"acme","type":"{name}","occurred_at":"{}","message_id":"m{message}"{own}}}"#,
            Timestamp(at).to_rfc3339(),
        );
        publish(&mut plan, rng, json, (at, format!("e{number}"), of), &campaign, contact);
    }
    // Shuffled: everything comes in any order.
    for at in (1..plan.records.len()).rev() {
        plan.records.swap(at, rng.random_range(0..=at));
    }
    plan
}

/// Runs one history; what does not hold at the end.
async fn run(seed: u64, fault: Fault, events: usize) -> Result<(), String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let Plan { records, want } = plan(&mut rng, events);
    let store = Arc::new(SimStore::new(rng.random(), fault));
    let world = World {
        store: store.clone(),
        raw: Rc::new(RefCell::new(Topic::new(3))),
        owned: Rc::new(RefCell::new(Topic::new(2))),
        rng: Rc::new(RefCell::new(rng)),
        fault,
    };
    let mut workers: Vec<Worker> = (0..3).map(|partition| world.start_placer(partition)).collect();
    workers.extend((0..2).map(|partition| world.start_owner(partition, 0)));
    // Every other history is a storm.
    let steps_between_crashes = if seed.is_multiple_of(2) { 12 } else { 4 };
    let (mut zombies, mut replayed) = (Vec::<Worker>::new(), false);
    // In some histories a contact is forgotten, sooner or later; repeats and late events of it come all the same.
    let account = AccountId::parse("acme").unwrap();
    let forgets = seed % 3 == 1;
    let (forgotten, forget_at) =
        (CONTACTS[usize::try_from(seed % 7 % 3).unwrap()].parse::<Uuid>().unwrap(), seed % 300 + 1);
    let mut forgetting = None;
    let mut records = records.into_iter();
    for step in 1_u64.. {
        sleep(Duration::from_millis(20)).await;
        if world.random(0..3) > 0
            && let Some((partition, record)) = records.next()
        {
            world.raw.borrow_mut().partitions[partition].push(record);
        }
        let calm = step > 400;
        store.set_failing(!calm);
        if forgets && step == forget_at {
            let (world, account) = (world.clone(), account.clone());
            forgetting =
                Some(tokio::task::spawn_local(async move { world.forget(&account, forgotten).await }));
        }
        // An operator asks for a recount, of numbers that are right.
        if world.random(0..40) == 0 && records.len() > 0 {
            let timelines: Vec<&TimelineId> = want.keys().collect();
            let at = usize::try_from(world.random(0..timelines.len() as u64)).unwrap();
            world.order_recount(timelines[at]);
        }
        if !calm && world.random(0..steps_between_crashes) == 0 {
            // A consumer crashes, or loses its partition and does not know.
            let at = usize::try_from(world.random(0..5)).unwrap();
            if !replayed && at < 3 && world.random(0..10) == 0 {
                replayed = true;
                world.raw.borrow_mut().committed[at] = 0;
            }
            workers[at].revoked.set(true);
            let next = if at < 3 { world.start_placer(at) } else { world.start_owner(at - 3, step) };
            let old = std::mem::replace(&mut workers[at], next);
            if world.random(0..2) == 0 {
                zombies.push(old);
            } else {
                old.task.abort();
            }
        }
        if !zombies.is_empty() && (calm || world.random(0..8) == 0) {
            let at = usize::try_from(world.random(0..zombies.len() as u64)).unwrap();
            zombies.swap_remove(at).task.abort();
        }
        zombies.retain(|zombie| !zombie.task.is_finished());
        if workers.iter().any(|worker| worker.task.is_finished()) {
            return Err("a worker panicked".into());
        }
        let done = calm
            && records.len() == 0
            && zombies.is_empty()
            && forgetting.as_ref().is_none_or(JoinHandle::is_finished);
        if done && world.raw.borrow().is_done() && world.owned.borrow().is_done() {
            break;
        }
        if step > 20_000 {
            return Err("did not come to rest".into());
        }
    }
    for worker in &workers {
        worker.task.abort();
    }
    let mut want = want;
    if forgets {
        let erased =
            want.insert(TimelineId::contact(&account, forgotten), BTreeSet::new()).unwrap_or_default();
        for rows in want.values_mut() {
            rows.retain(|row| !erased.contains(row));
        }
    }
    check(&store, &want).await?;
    if seed.is_multiple_of(5) { check_recount(&world, &want).await } else { Ok(()) }
}

/// Every timeline has the rows it should, in its numbers and on its pages.
async fn check(
    store: &Arc<SimStore>,
    want: &BTreeMap<TimelineId, BTreeSet<(i64, String, u8)>>,
) -> Result<(), String> {
    for (id, rows) in want {
        check_pages(store, id, None, rows).await?;
        check_tree(store, id).await?;
        let Subject::Contact(contact) = id.subject else { continue };
        for (other, of_campaign) in want {
            let Subject::Campaign(campaign) = &other.subject else { continue };
            let both = rows.intersection(of_campaign).cloned().collect();
            check_pages(store, id, Some(campaign), &both).await?;
            check_tree(store, &TimelineId::contact_campaign(&id.account, contact, campaign)).await?;
        }
    }
    Ok(())
}

/// Every page of a timeline, or of what a contact's has of one campaign, shows what it should, and the total is right.
async fn check_pages(
    store: &Arc<SimStore>,
    id: &TimelineId,
    campaign: Option<&Id>,
    want: &BTreeSet<(i64, String, u8)>,
) -> Result<(), String> {
    let want: Vec<&(i64, String, u8)> = want.iter().rev().collect();
    for limit in [2, 100] {
        let mut got = Vec::new();
        for page in 0.. {
            let request = PageRequest {
                types: TypeSet::CAMPAIGN.or(TypeSet::CONTACT),
                span: Span::all(),
                campaign: campaign.cloned(),
                offset: page * limit as u64,
                limit,
            };
            let read =
                read_page(store.as_ref(), id, &request).await.map_err(|error| error.chain().to_string())?;
            if read.total != want.len() as u64 {
                return Err(format!(
                    "{id:?} {campaign:?}: total {} on page {page}, want {}",
                    read.total,
                    want.len()
                ));
            }
            if read.rows.is_empty() {
                break;
            }
            for row in read.rows {
                if row.body.automation.as_ref().map(Id::as_str) != Some("au")
                    && matches!(id.subject, Subject::Contact(_))
                {
                    return Err(format!("{id:?} {campaign:?}: {:?} is not joined", row.key));
                }
                got.push((row.key.position.at.0, row.key.position.id.to_string(), row.key.event_type as u8));
            }
        }
        if !got.iter().eq(want.iter().copied()) {
            return Err(format!("{id:?} {campaign:?} by {limit}: rows {got:?}, want {want:?}"));
        }
    }
    Ok(())
}

/// At every level the numbers are those of the rows.
async fn check_tree(store: &Arc<SimStore>, id: &TimelineId) -> Result<(), String> {
    let report = operate::tree::check(store.as_ref(), id).await.map_err(|error| error.chain().to_string())?;
    match report.differences.first() {
        None => Ok(()),
        Some(difference) => Err(format!("{id:?}: {}", difference.what)),
    }
}

/// Spoils every number in the store, and lets owners count again.
async fn check_recount(
    world: &World,
    want: &BTreeMap<TimelineId, BTreeSet<(i64, String, u8)>>,
) -> Result<(), String> {
    let spoiled = world.store.spoil_tallies();
    for id in &spoiled {
        if check_tree(&world.store, id).await.is_ok() {
            return Err(format!("{id:?} is spoiled, and that is not found"));
        }
        world.order_recount(id);
    }
    let owners = [world.start_owner(0, u64::MAX), world.start_owner(1, u64::MAX)];
    while !world.owned.borrow().is_done() {
        world.idle().await;
    }
    for owner in owners {
        owner.task.abort();
    }
    check(&world.store, want).await.map_err(|what| format!("after a recount: {what}"))
}

fn run_seed(seed: u64, fault: Fault) -> Result<(), String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let events = 10 + usize::try_from(seed % 60).unwrap();
    LocalSet::new().block_on(&runtime, run(seed, fault, events))
}

#[test]
fn every_history_comes_to_rest_exact() {
    let seeds = std::env::var("BACKSTAMP_HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(150);
    let first =
        std::env::var("BACKSTAMP_HISTORIES_FROM").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    for seed in first..first + seeds {
        if let Err(what) = run_seed(seed, Fault::None) {
            panic!(
                "seed {seed}: {what}\nagain: BACKSTAMP_HISTORIES_FROM={seed} BACKSTAMP_HISTORIES=1 cargo test -p ingest --test histories"
            );
        }
    }
}

#[test]
fn each_rule_left_out_is_found() {
    for fault in
        [Fault::NoEpoch, Fault::LateEpoch, Fault::CommitAfterRevoke, Fault::CommitFirst, Fault::MemoryOnly]
    {
        let found = (0..20_000).find(|seed| run_seed(*seed, fault).is_err());
        assert!(found.is_some(), "{fault:?} was not found");
    }
}
