//! The whole of ingest, from its consumers to the pages that are read, on a log and a store that are simulated: random histories in
//! which every request takes its own random time, fails with or without having landed, or lands later; processes crash between
//! any two awaits, leave, are stopped and wake up as zombies, with clocks that are wrong; partitions move; a replay begins in the middle,
//! topics are deleted and created anew; opens come before their sends, names before what they name, and repeats anywhere; time
//! passes, and events expire. At rest every event is in exactly one place, and every page and total is that of a plain model.
//!
//! Time is simulated too: a history is a function of its seed. `BACKSTAMP_HISTORIES=10000` runs as many, on all cores; a seed that fails is
//! named, with the command that runs it again.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

#[path = "histories/broker.rs"]
mod broker;
#[path = "histories/duel.rs"]
mod duel;
#[path = "histories/fault.rs"]
mod fault;
#[path = "histories/group.rs"]
mod group;
#[path = "histories/ledger.rs"]
mod ledger;
#[path = "histories/operator.rs"]
mod operator;
#[path = "histories/plan.rs"]
mod plan;
#[path = "histories/sim.rs"]
mod sim;
#[path = "histories/sim_store.rs"]
mod sim_store;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use broker::{Broker, READ};
use fault::Fault;
use group::Group;
use ingest::own::OwnerSettings;
use ledger::{Ledger, read_meanwhile};
use operator::Operator;
use plan::{Plan, contact_of};
use query::trees::Trees;
use sim::Sim;
use sim_store::SimStore;
use timeline::tally::Sizes;
use timeline::time::DAY_MS;
use timeline::{AccountId, TimelineId};
use tokio::task::JoinHandle;
use tokio::time::sleep;

const RETENTION_MS: i64 = 180 * DAY_MS;
/// How wrong a process's clock may be: half of what rows are kept longer.
const SKEW_MAX_MS: i64 = DAY_MS / 2;
const SIZES: Sizes = Sizes {
    leaf_rows_max: 3,
    node_leaves_max: 3,
    scan_rows_max: 4,
    part_rows_max: 12,
    pair_rows_min: 8,
    unread_rows: 5,
    without: None,
};
const HOUR_MS: i64 = DAY_MS / 24;
const STEP: Duration = Duration::from_millis(20);
/// How long all must be done at the end: longer than it takes a request that failed to land.
const STEPS_OF_REST: u64 = 200;
/// Histories that `cargo test` runs.
const HISTORIES: u64 = 1000;
/// Histories within which each fault is found.
const FOUND_WITHIN: u64 = 5_000;

/// How owners are set up: little is held, and what the fault leaves out is left out.
fn owner_settings(sim: &Sim) -> OwnerSettings {
    let sizes = Sizes { unread_rows: sim.unread_rows, without: sim.fault.rule(), ..SIZES };
    OwnerSettings { retention_ms: RETENTION_MS, keys_held_max: 40, sizes }
}

/// Runs one history; what does not hold at the end, and how many requests there were.
async fn run(seed: u64, fault: Fault) -> Result<u64, String> {
    let sim = Sim::new(seed, fault);
    let plan = Plan::draw(&sim, 10 + usize::try_from(seed % 60).unwrap());
    let (store, broker) = (Arc::new(SimStore::new(&sim)), Broker::new(&sim));
    let mut groups = READ.map(|topic| Group::start(&sim, &broker, &store, topic));
    // Every other history is a storm.
    let disturbance = if seed.is_multiple_of(2) { 0.08 } else { 0.25 };
    // Events that expire on the way do so first for whoever asks, then in the store, too.
    let (expiry, disappearance) = (sim.random(20..150), sim.random(150..250));
    let operator = Operator { sim: sim.clone(), store: store.clone(), broker: broker.clone() };
    let account = AccountId::parse("acme").unwrap();
    // In some histories a contact is forgotten; what comes of it comes all the same. Not where the store looks at what it writes over: that
    // is the embedded one, in which nobody is forgotten.
    let forgotten =
        (sim.writes_unseen && sim.chance(0.5)).then(|| contact_of(1 + sim.pick(2)).parse().unwrap());
    let (forgotten_at, mut forgetting) = (sim.random(1..350), None);
    let (mut records, mut rested) = (plan.records.iter(), 0);
    let timelines: Vec<TimelineId> = plan.known.iter().cloned().collect();
    let (trees, mut reading) = (Arc::new(Trees::default()), None::<JoinHandle<()>>);
    for step in 1_u64.. {
        sleep(STEP).await;
        let calm = step > 400;
        if sim.chance(0.66)
            && let Some(record) = records.next()
        {
            broker.publish(record.topic, record.partition, record.key.as_deref(), &record.value);
        }
        match step {
            _ if step == expiry => sim.jump_ms(HOUR_MS),
            _ if step == disappearance => sim.jump_ms(2 * DAY_MS),
            _ => {}
        }
        sim.set_failing(!calm);
        if calm && step.is_multiple_of(300) {
            // A commit that landed late may have taken an offset back: what is behind it is read again once others hold the partition.
            groups.iter().for_each(Group::assign_all);
        }
        for group in &mut groups {
            if !calm && sim.chance(disturbance / 3.0) {
                group.disturb();
            }
            group.bury(calm);
            if group.has_failed() {
                return Err("a worker ended".into());
            }
        }
        if let Some(done) = reading.take_if(|reading| reading.is_finished()) {
            done.await.map_err(|panic| format!("a reader: {panic}"))?;
        }
        if reading.is_none() && !timelines.is_empty() && sim.chance(0.2) {
            let id = timelines[sim.pick(timelines.len())].clone();
            reading = Some(tokio::spawn(read_meanwhile(sim.clone(), store.clone(), trees.clone(), id)));
        }
        if !calm && sim.chance(0.02) {
            operator.recount(&plan);
        }
        if let Some(contact) = forgotten.filter(|_| step == forgotten_at) {
            forgetting = Some(tokio::spawn(operator.clone().forget(account.clone(), contact)));
        }
        if !calm && sim.chance(0.01) {
            groups[sim.pick(groups.len())].replay();
        }
        let all_done = READ.into_iter().all(|topic| broker.is_done(topic));
        if !calm && all_done && sim.chance(0.1) {
            groups[sim.pick(groups.len())].recreate();
        }
        let is_forgotten = forgetting.as_ref().is_none_or(|task| task.is_finished());
        let rests =
            calm && all_done && is_forgotten && records.len() == 0 && groups.iter().all(Group::is_calm);
        rested = if rests { rested + 1 } else { 0 };
        if rested > STEPS_OF_REST {
            break;
        }
        if step > 20_000 {
            let open: Vec<_> = READ.iter().filter(|topic| !broker.is_done(**topic)).collect();
            return Err(format!("did not come to rest: {open:?} are not done"));
        }
    }
    groups.iter().for_each(Group::stop);
    if let Some(reading) = reading {
        reading.await.map_err(|panic| format!("a reader: {panic}"))?;
    }
    let plan = match forgotten {
        Some(contact) => plan.without(&TimelineId::contact(&account, contact)),
        None => plan,
    };
    Ledger { sim: &sim, store: &store, broker: &broker, plan: &plan, trees: &trees }.check().await?;
    Ok(sim.requests())
}

/// Runs the history of a seed: what does not hold, or how many requests there were.
type RunSeed = fn(u64, Fault) -> Result<u64, String>;

fn run_seed(seed: u64, fault: Fault) -> Result<u64, String> {
    in_simulated_time(run(seed, fault))
}

fn run_duel(seed: u64, fault: Fault) -> Result<u64, String> {
    in_simulated_time(duel::run(seed, fault))
}

fn in_simulated_time<T>(history: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(history)
}

/// Runs the histories of `seeds` on all cores, until one fails: the first that does, and what does not hold.
fn first_failure(run: RunSeed, seeds: std::ops::Range<u64>, fault: Fault) -> Option<(u64, String)> {
    let (next, failed) = (AtomicU64::new(seeds.start), AtomicU64::new(seeds.end));
    let work = || {
        let mut found = None;
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= failed.load(Ordering::Relaxed) {
                return found;
            }
            if let Err(what) = run(seed, fault) {
                failed.fetch_min(seed, Ordering::Relaxed);
                found = Some((seed, what));
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).min()
    })
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn every_history_comes_to_rest_exact() {
    let first = setting("BACKSTAMP_HISTORIES_FROM").unwrap_or(0);
    let count = setting("BACKSTAMP_HISTORIES").unwrap_or(HISTORIES);
    if let Some((seed, what)) = first_failure(run_seed, first..first + count, Fault::None) {
        panic!(
            "seed {seed}: {what}\nagain: BACKSTAMP_HISTORIES_FROM={seed} BACKSTAMP_HISTORIES=1 cargo test -p ingest --test histories every"
        );
    }
}

#[test]
fn every_duel_comes_to_rest_exact() {
    let count = 10 * setting("BACKSTAMP_HISTORIES").unwrap_or(HISTORIES);
    if let Some((seed, what)) = first_failure(run_duel, 0..count, Fault::None) {
        panic!("seed {seed}: {what}");
    }
}

#[test]
fn a_history_is_a_function_of_its_seed() {
    for seed in 0..20 {
        assert_eq!(run_seed(seed, Fault::None), run_seed(seed, Fault::None), "seed {seed}");
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "what is found, for who asks with --nocapture")]
fn each_rule_left_out_is_found() {
    for fault in Fault::ALL {
        let run = if fault.is_of_a_first_tree() { run_duel } else { run_seed };
        let found = first_failure(run, 0..FOUND_WITHIN, fault);
        let Some((seed, what)) = found else { panic!("{fault:?} was not found") };
        println!("{fault:?}: seed {seed}: {what}");
    }
}
