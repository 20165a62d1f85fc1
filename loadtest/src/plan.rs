//! `loadtest plan`: what must stand where for so many events a day, and what would break first?
//!
//! Two simulations carry it: where a day's campaigns fall ([`placement`]), hashed as they really are, and what becomes of the real
//! tree in campaigns of growing size ([`growth`]). What things cost is measured elsewhere and read from a file ([`costs`]). Every
//! other number is an assumption: an option of this command, printed with its value.

mod costs;
mod growth;
mod placement;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use ingest::KEYS_HELD_MAX;
use ingest::own::SMALL_HELD;
use serde::Serialize;
use timeline::tally::{LEAF_ROWS_MAX, NODE_LEAVES_MAX, SCAN_ROWS_MAX, UNREAD_ROWS};

use costs::Costs;
use growth::{Growth, Order};
use placement::{Nodes, PARTITIONS, Placement, Traffic};

/// What a held timeline costs beside its keys, in keys; as ingest reckons it.
const TIMELINE_COST_KEYS: f64 = 8.0;
/// How long the delivery of a mail is behind its sending, in the mean.
const DELIVERY_S: f64 = 2.0;
/// A root beyond this is larger than the rows of the page that it is read for.
const ROOT_BYTES_MAX: f64 = 32.0 * 1024.0;
/// No deployment of one cluster that anyone runs is larger.
const NODES_MAX: f64 = 1000.0;

/// Prints the deployment that the measured costs imply, and what would break first.
#[derive(Args, Debug, Serialize)]
pub(crate) struct Options {
    /// Events a day; `k`, `M` and `G` are understood.
    #[arg(long, default_value = "100M", value_parser = parse_count)]
    events_per_day: u64,
    /// Campaigns sent a day.
    #[arg(long, default_value = "2000", value_parser = parse_count)]
    campaigns: u64,
    /// How far the sizes of campaigns are apart: sigma of a lognormal law. At 2 one in a thousand is 480 times the median.
    #[arg(long, default_value_t = 2.0)]
    size_sigma: f64,
    /// The share of events that belong to a campaign, and so have two rows.
    #[arg(long, default_value_t = 0.95)]
    campaign_share: f64,
    /// How long the mails of a campaign take to be sent, whatever its size.
    #[arg(long, default_value_t = 60.0)]
    blast_minutes: f64,
    /// The share of a campaign's events that the sending itself makes: sent, delivered, bounced.
    #[arg(long, default_value_t = 0.67)]
    blast_share: f64,
    /// The hours in which what readers do falls by half.
    #[arg(long, default_value_t = 4.0)]
    reaction_hours: f64,
    /// Events of one contact a day, over the days on which it gets no mail too.
    #[arg(long, default_value_t = 1.0)]
    contact_events_per_day: f64,
    /// Days that events are kept, in Kafka and in the store.
    #[arg(long, default_value_t = 180.0)]
    retention_days: f64,
    /// Copies of everything that is kept.
    #[arg(long, default_value_t = 3)]
    replicas: usize,
    /// Processors of a node of the store.
    #[arg(long, default_value_t = 16.0)]
    node_cores: f64,
    /// Disk of a node of the store, in TB.
    #[arg(long, default_value_t = 8.0)]
    node_disk_tb: f64,
    /// How full disks may be: compaction needs room.
    #[arg(long, default_value_t = 0.6)]
    disk_fill: f64,
    /// How busy processors may be in the busiest five minutes: the rest is for what fails and what must be caught up.
    #[arg(long, default_value_t = 0.5)]
    busy: f64,
    /// Tokens of a node on the ring.
    #[arg(long, default_value_t = 256)]
    node_tokens: usize,
    /// How long an owner gathers and works on a batch, in milliseconds.
    #[arg(long, default_value_t = 100.0)]
    batch_ms: f64,
    /// Pages read a second, at most.
    #[arg(long, default_value_t = 1000.0)]
    pages_per_s: f64,
    /// Processors of a copy of query.
    #[arg(long, default_value_t = 2.0)]
    query_cores: f64,
    /// What a partition of Kafka takes with ease, in MB a second.
    #[arg(long, default_value_t = 5.0)]
    kafka_partition_mb_per_s: f64,
    /// Hours that the internal topic is kept.
    #[arg(long, default_value_t = 72.0)]
    internal_hours: f64,
    /// The largest campaign that is really grown; larger ones are told from it.
    #[arg(long, default_value = "10M", value_parser = parse_count)]
    grown_rows_max: u64,
    /// What chance begins with.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The measured costs, in place of those that the program was built with (`loadtest/costs.json`).
    #[arg(long)]
    #[serde(skip)]
    costs: Option<PathBuf>,
    /// Prints JSON in place of tables.
    #[arg(long)]
    #[serde(skip)]
    json: bool,
}

/// All that is printed.
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    pub(crate) assumptions: Options,
    pub(crate) costs: Costs,
    pub(crate) placement: Placement,
    pub(crate) nodes: Nodes,
    pub(crate) growth: Vec<Growth>,
    pub(crate) deployment: Deployment,
    pub(crate) limits: Vec<Limit>,
}

/// What must stand where.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Deployment {
    pub(crate) events_partitions: f64,
    pub(crate) kafka_mb_per_s_peak: f64,
    pub(crate) kafka_disk_tb: f64,
    pub(crate) ingest_copies: f64,
    pub(crate) ingest_cores: f64,
    pub(crate) owner_memory_mb: f64,
    /// For how long a copy remembers a timeline that it does not touch.
    pub(crate) held_s: f64,
    /// Keys of histories that are read again for an event, since their timeline was not held any more.
    pub(crate) keys_read_again: f64,
    pub(crate) query_copies: f64,
    pub(crate) store_nodes: f64,
    pub(crate) store_nodes_for_cpu: f64,
    pub(crate) store_nodes_for_disk: f64,
    pub(crate) store_cpu_us_per_event: f64,
    pub(crate) store_disk_tb: f64,
    /// Bytes of tallies that an owner writes for an event of a campaign, in the mean.
    pub(crate) tally_bytes_per_event: f64,
    pub(crate) largest_partition_rows: f64,
    pub(crate) largest_partition_mb: f64,
    pub(crate) page_cells: f64,
    pub(crate) page_row_reads: f64,
    pub(crate) page_root_kb: f64,
}

/// Something that could stand in the way.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Limit {
    pub(crate) what: &'static str,
    /// How much of it there is room for, and how much is asked.
    pub(crate) room: f64,
    pub(crate) asked: f64,
    pub(crate) says: String,
}

impl Limit {
    pub(crate) fn is_broken(&self) -> bool {
        self.asked > self.room
    }
}

pub(crate) fn run(options: Options) -> anyhow::Result<ExitCode> {
    let json = options.json;
    let plan = Plan::of(options)?;
    print(&if json { serde_json::to_string_pretty(&plan)? } else { table::of(&plan)? });
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "what a person or a script wants to read")]
fn print(text: &str) {
    println!("{text}");
}

impl Plan {
    fn of(options: Options) -> anyhow::Result<Plan> {
        let costs = Costs::read(options.costs.as_deref())?;
        let traffic = Traffic {
            events: options.events_per_day as f64,
            campaigns: usize::try_from(options.campaigns.max(1))?,
            size_sigma: options.size_sigma,
            campaign_share: options.campaign_share,
            blast_minutes: options.blast_minutes,
            blast_share: options.blast_share,
            reaction_hours: options.reaction_hours,
            seed: options.seed,
        };
        let placement = Placement::of(&traffic);
        let growth = growths(options.grown_rows_max, options.seed)?;
        let mut deployment = deployment(&options, &costs, &placement, &growth, 1.0);
        // The fullest node decides; how full it is depends on their number, so look twice.
        let mut nodes = Nodes { nodes: 0, kept_skew: 1.0, written_skew_peak: 1.0 };
        for _ in 0..2 {
            let count = deployment.store_nodes.min(NODES_MAX) as usize;
            nodes = placement.on_nodes(count, options.replicas, &traffic, options.node_tokens);
            deployment = self::deployment(&options, &costs, &placement, &growth, nodes.written_skew_peak);
        }
        let limits = limits(&options, &costs, &placement, &growth, &deployment);
        Ok(Plan { assumptions: options, costs, placement, nodes, growth, deployment, limits })
    }
}

/// Trees of campaigns from ten thousand to a hundred million rows, and of backfills.
fn growths(grown_rows_max: u64, seed: u64) -> anyhow::Result<Vec<Growth>> {
    let mut growths: Vec<Growth> = Vec::new();
    for rows in [10_000, 100_000, 1_000_000, 10_000_000, 100_000_000] {
        growths.push(match growths.last() {
            Some(largest) if rows > grown_rows_max => largest.scaled_to(rows),
            _ => Growth::of(rows, Order::AsItHappens, seed)?,
        });
    }
    for rows in [100_000, 1_000_000] {
        growths.push(Growth::of(rows, Order::Backfill, seed)?);
    }
    Ok(growths)
}

/// The tree of a campaign of `rows` rows: the next smaller one that was looked at, and the root by the number of rows.
fn tree_of(growth: &[Growth], rows: f64) -> Growth {
    let mut of_campaigns = growth.iter().filter(|growth| growth.order == Order::AsItHappens);
    let near = of_campaigns.clone().rfind(|growth| growth.rows as f64 <= rows);
    match near.or_else(|| of_campaigns.next()) {
        Some(near) if rows > near.rows as f64 => near.scaled_to(rows as u64),
        Some(near) => near.clone(),
        None => unreachable!("campaigns were grown"),
    }
}

fn deployment(
    options: &Options,
    costs: &Costs,
    placement: &Placement,
    growth: &[Growth],
    node_skew: f64,
) -> Deployment {
    let (events_per_s, replicas) = (placement.events_per_s_peak, options.replicas as f64);
    let ingest_copies = (events_per_s / (costs.ingest_events_per_s.value * options.busy)).ceil().max(2.0);
    let kafka_mb_per_s = events_per_s * costs.raw_event_bytes.value / 1e6;

    // Of a small history a copy remembers that there is no tree, and reads it now and then; of a long one it holds the leaf that is
    // written to.
    let history = options.contact_events_per_day * options.retention_days;
    let touched_per_s = events_per_s / ingest_copies;
    let (held_s, keys_a_load) = if history <= SCAN_ROWS_MAX as f64 {
        (SMALL_HELD as f64 / touched_per_s, history / UNREAD_ROWS as f64)
    } else {
        let keys = LEAF_ROWS_MAX as f64;
        (KEYS_HELD_MAX as f64 / (touched_per_s * (keys + TIMELINE_COST_KEYS + 1.0)), keys)
    };
    // A mail's delivery finds its contact held if it comes soon enough; what its reader does later does not.
    let deliveries = options.blast_share / 2.0 * options.campaign_share;
    let loads = 1.0 - deliveries * (1.0 - (-held_s / DELIVERY_S).exp());
    let keys_read_again = loads * keys_a_load;

    let store_cpu_us = costs.store_event_cpu_us.value * replicas
        + costs.store_touch_cpu_us.value * loads * replicas
        + costs.store_key_read_cpu_us.value * keys_read_again * quorum(options.replicas);
    let store_cores = (events_per_s * store_cpu_us * node_skew
        + options.pages_per_s * costs.store_page_cpu_us.value * quorum(options.replicas))
        / 1e6;
    let store_nodes_for_cpu = (store_cores / (options.node_cores * options.busy)).ceil();
    let kept_events = options.events_per_day as f64 * options.retention_days;
    let store_disk_tb = kept_events * costs.disk_bytes.value * replicas / 1e12;
    let store_nodes_for_disk = (store_disk_tb / (options.node_disk_tb * options.disk_fill)).ceil();

    let largest = tree_of(growth, placement.campaign_events_max);
    Deployment {
        events_partitions: (kafka_mb_per_s / options.kafka_partition_mb_per_s)
            .ceil()
            .max(2.0 * ingest_copies),
        kafka_mb_per_s_peak: kafka_mb_per_s,
        kafka_disk_tb: (kept_events * costs.raw_event_bytes.value
            + options.events_per_day as f64 * options.internal_hours / 24.0 * costs.placed_event_bytes.value)
            * replicas
            / 1e12,
        ingest_copies,
        ingest_cores: events_per_s * costs.ingest_cpu_us.value / 1e6 / options.busy,
        owner_memory_mb: costs.ingest_memory_bytes.value / 1e6,
        held_s,
        keys_read_again,
        query_copies: (options.pages_per_s * costs.query_page_cpu_us.value
            / 1e6
            / (options.query_cores * options.busy))
            .ceil()
            .max(2.0),
        store_nodes: store_nodes_for_cpu.max(store_nodes_for_disk).max(replicas),
        store_nodes_for_cpu,
        store_nodes_for_disk,
        store_cpu_us_per_event: store_cpu_us,
        store_disk_tb,
        tally_bytes_per_event: tally_bytes_per_event(options, placement, growth),
        largest_partition_rows: largest.part_rows_max as f64,
        largest_partition_mb: largest.part_rows_max as f64 * costs.row_disk_bytes.value / 1e6,
        page_cells: largest.page_cells,
        page_row_reads: largest.page_row_reads,
        page_root_kb: largest.root_bytes / 1e3,
    }
}

/// How many replicas answer a read.
fn quorum(replicas: usize) -> f64 {
    (replicas / 2 + 1) as f64
}

/// Every batch writes the root and the touched nodes of each campaign in it; how many batches share a campaign's rows depends on how fast
/// they come. Looked at in the blast of each campaign, the root half grown.
fn tally_bytes_per_event(options: &Options, placement: &Placement, growth: &[Growth]) -> f64 {
    let blast_batches = options.blast_minutes * 60_000.0 / options.batch_ms;
    let (mut bytes, mut events) = (0.0, 0.0);
    for size in placement.campaign_events() {
        let tree = tree_of(growth, size / 2.0);
        let rows_in_blast = size * options.blast_share;
        let batches = blast_batches.min(rows_in_blast);
        if size > SCAN_ROWS_MAX as f64 {
            bytes += batches * tree.write_of(rows_in_blast / batches).bytes;
        }
        events += rows_in_blast;
    }
    bytes / events
}

fn limits(
    options: &Options,
    costs: &Costs,
    placement: &Placement,
    growth: &[Growth],
    deployment: &Deployment,
) -> Vec<Limit> {
    let copy_rows_per_s = costs.ingest_events_per_s.value * (1.0 + options.campaign_share);
    let largest = tree_of(growth, placement.campaign_events_max);
    let backfill = growth.iter().rfind(|growth| growth.order == Order::Backfill);
    let shard_rows_per_s = 1e6 / (costs.store_event_cpu_us.value / (1.0 + options.campaign_share));
    let batches_per_s = 1000.0 / options.batch_ms;
    let root_mb_per_s = largest.root_bytes * batches_per_s / 1e6;
    let disk_bytes_per_s = costs.disk_bytes.value * placement.campaign_rows_per_s_max / 1e6;
    let mut limits = vec![
        Limit {
            what: "copies of ingest",
            room: placement.copies_useful,
            asked: deployment.ingest_copies,
            says: format!(
                "the internal topic has {PARTITIONS} partitions, and the fullest takes {:.2} times the mean in the busiest five minutes: beyond {:.0} copies it alone decides",
                placement.partition_skew_peak, placement.copies_useful
            ),
        },
        Limit {
            what: "rows/s of the fullest of the 64 partitions",
            room: copy_rows_per_s,
            asked: placement.partition_rows_per_s_max,
            says: "one owner takes a partition; when more come than one copy takes, they wait and show later".to_owned(),
        },
        Limit {
            what: "rows/s of the largest campaign",
            room: shard_rows_per_s,
            asked: placement.campaign_rows_per_s_max,
            says: "its new rows go to one partition of the store at a time, so to one core of each replica (ScyllaDB)".to_owned(),
        },
        Limit {
            what: "bytes of the largest campaign's root",
            room: ROOT_BYTES_MAX,
            asked: largest.root_bytes,
            says: format!(
                "{:.0} rows have {:.0} nodes of up to {LEAF_ROWS_MAX} × {NODE_LEAVES_MAX} rows, each with an entry in the one root, which every page reads and every batch writes: {:.1} MB/s beside {:.1} MB/s of rows, in its blast",
                placement.campaign_events_max, largest.nodes, root_mb_per_s, disk_bytes_per_s
            ),
        },
        Limit {
            what: "bytes of tallies written for an event",
            room: costs.disk_bytes.value,
            asked: deployment.tally_bytes_per_event,
            says: "beyond what the event's rows take the store writes more tallies than rows".to_owned(),
        },
        Limit {
            what: "keys read again for an event",
            room: costs.store_event_cpu_us.value * options.replicas as f64
                / (costs.store_key_read_cpu_us.value * quorum(options.replicas)),
            asked: deployment.keys_read_again,
            says: format!(
                "an owner remembers {SMALL_HELD} small timelines and holds {KEYS_HELD_MAX} keys of large ones, which is what it touches in {:.1} s; of a contact that comes back later it asks whether it has a tree, and reads a small history once in {UNREAD_ROWS} rows, a leaf of a long one each time; beyond the room that costs more than the writes",
                deployment.held_s
            ),
        },
        Limit {
            what: "nodes of the store",
            room: NODES_MAX,
            asked: deployment.store_nodes,
            says: "one cluster".to_owned(),
        },
    ];
    if let Some(backfill) = backfill {
        limits.push(Limit {
            what: "parts that a page reads after a backfill",
            room: 4.0,
            asked: backfill.page_row_reads_max as f64,
            says: format!("{} rows that came in any order of time", backfill.rows),
        });
    }
    limits
}

/// `100M`, `10G`, `2500`, `10_000`.
fn parse_count(text: &str) -> Result<u64, String> {
    let text = text.replace('_', "");
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, 'k')) => (&text[..at], 1_000.0),
        Some((at, 'M')) => (&text[..at], 1e6),
        Some((at, 'G')) => (&text[..at], 1e9),
        _ => (text.as_str(), 1.0),
    };
    match digits.parse::<f64>() {
        Ok(number) if (0.0..=1e12).contains(&(number * unit)) => Ok((number * unit) as u64),
        _ => Err("expected a number such as 2500, 100M or 10G".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    fn plan(arguments: &[&str]) -> Plan {
        let command = Options::augment_args(clap::Command::new("plan"));
        let arguments = ["plan", "--grown-rows-max", "100k"].iter().chain(arguments);
        let matches = command.try_get_matches_from(arguments).expect("known options");
        Plan::of(Options::from_arg_matches(&matches).expect("valid options")).expect("planned")
    }

    #[test]
    fn the_same_options_give_the_same_plan() {
        let json = || serde_json::to_string(&plan(&["--seed", "7"])).expect("plain");
        assert_eq!(json(), json());
    }

    #[test]
    fn more_events_need_more_of_everything_and_break_something_in_the_end() {
        let (small, large) = (plan(&[]), plan(&["--events-per-day", "100G", "--campaigns", "200k"]));
        let (less, more) = (&small.deployment, &large.deployment);
        assert!(less.store_nodes < more.store_nodes && less.ingest_copies < more.ingest_copies);
        assert!(less.held_s > more.held_s && less.events_partitions < more.events_partitions);
        let copies = |plan: &Plan| {
            plan.limits.iter().find(|limit| limit.what == "copies of ingest").map(Limit::is_broken)
        };
        assert_eq!((copies(&small), copies(&large)), (Some(false), Some(true)));
        let shown = table::of(&large).expect("shown");
        assert!(shown.contains("BROKEN") && shown.contains("--events-per-day"), "{shown}");
    }

    #[test]
    fn numbers_are_read_with_their_units() {
        assert_eq!(parse_count("2_500"), Ok(2500));
        assert_eq!(parse_count("1.5M"), Ok(1_500_000));
        assert_eq!(parse_count("10G"), Ok(10_000_000_000));
        assert!(parse_count("many").is_err() && parse_count("-1").is_err());
    }
}
