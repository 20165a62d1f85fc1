//! The plan as a person reads it.

use clap::Args;
use serde_json::Value;

use super::{Options, Plan};

/// Tables: what must stand where, what would break first, the simulations, costs and assumptions.
pub(crate) fn of(plan: &Plan) -> anyhow::Result<String> {
    let sections = [
        headline(plan),
        deployment(plan),
        limits(plan),
        placement(plan),
        growth(plan),
        costs(plan)?,
        assumptions(plan)?,
    ];
    Ok(sections.join("\n\n"))
}

fn headline(plan: &Plan) -> String {
    let options = &plan.assumptions;
    let broken = plan.limits.iter().filter(|limit| limit.is_broken()).count();
    format!(
        "{} events a day in {} campaigns, kept {} days: {} events/s in the mean, {} in the busiest five minutes. {}",
        count(options.events_per_day as f64),
        count(options.campaigns as f64),
        options.retention_days,
        count(plan.placement.events_per_s_mean),
        count(plan.placement.events_per_s_peak),
        match broken {
            0 => "Nothing stands in the way.".to_owned(),
            1 => "One thing stands in the way.".to_owned(),
            many => format!("{many} things stand in the way."),
        }
    )
}

fn deployment(plan: &Plan) -> String {
    let (d, nodes) = (&plan.deployment, &plan.nodes);
    table(
        &["what", "how much", "because"],
        [
            [
                "partitions of mail.events".to_owned(),
                count(d.events_partitions),
                format!("two for each copy of ingest; {:.0} MB/s at the peak", d.kafka_mb_per_s_peak),
            ],
            ["disk of Kafka, TB".to_owned(), count(d.kafka_disk_tb), "every copy, both topics".to_owned()],
            [
                "copies of ingest".to_owned(),
                count(d.ingest_copies),
                format!("{:.0} cores in all; {:.0} MB each", d.ingest_cores, d.owner_memory_mb),
            ],
            ["copies of query".to_owned(), count(d.query_copies), "by processor time a page".to_owned()],
            [
                "nodes of the store".to_owned(),
                count(d.store_nodes),
                format!(
                    "{} for processors, {} for disk; the fullest takes {:.2} times the mean of writes, keeps {:.2} times",
                    count(d.store_nodes_for_cpu),
                    count(d.store_nodes_for_disk),
                    nodes.written_skew_peak,
                    nodes.kept_skew
                ),
            ],
            [
                "disk of the store, TB".to_owned(),
                count(d.store_disk_tb),
                format!("every copy; {} bytes an event and copy", plan.costs.disk_bytes.value),
            ],
            [
                "largest partition of the store".to_owned(),
                format!("{} rows", count(d.largest_partition_rows)),
                format!("{:.0} MB", d.largest_partition_mb),
            ],
            [
                "tally reads a page".to_owned(),
                format!("{:.2}", d.page_cells),
                format!(
                    "in the largest campaign: a root of {:.1} kB, a node or two, then {:.2} reads of rows",
                    d.page_root_kb, d.page_row_reads
                ),
            ],
            [
                "tallies written, bytes an event".to_owned(),
                count(d.tally_bytes_per_event),
                "in the blasts, where nearly all are".to_owned(),
            ],
            [
                "an owner remembers, seconds".to_owned(),
                format!("{:.1}", d.held_s),
                format!(
                    "{} keys of contacts' histories are read again for an event",
                    count(d.keys_read_again)
                ),
            ],
            [
                "the store's work, µs an event".to_owned(),
                count(d.store_cpu_us_per_event),
                "on all replicas, asking and reading again included".to_owned(),
            ],
        ],
    )
}

fn limits(plan: &Plan) -> String {
    table(
        &["what could stand in the way", "room", "asked", "", "why"],
        plan.limits.iter().map(|limit| {
            let verdict = if limit.is_broken() { "BROKEN" } else { "holds" };
            [
                limit.what.to_owned(),
                count(limit.room),
                count(limit.asked),
                verdict.to_owned(),
                limit.says.clone(),
            ]
        }),
    )
}

fn placement(plan: &Plan) -> String {
    let p = &plan.placement;
    table(
        &["a day, placed", ""],
        [
            ["median campaign, events".to_owned(), count(p.campaign_events_median)],
            ["largest campaign, events".to_owned(), count(p.campaign_events_max)],
            ["its rows/s in its busiest five minutes".to_owned(), count(p.campaign_rows_per_s_max)],
            ["rows/s of campaigns and contacts at the peak".to_owned(), count(p.rows_per_s_peak)],
            [
                "fullest of 64 partitions beside the mean, at the peak".to_owned(),
                format!("{:.2}", p.partition_skew_peak),
            ],
            ["the same over the day".to_owned(), format!("{:.2}", p.partition_skew_day)],
            ["rows/s of the fullest, whenever that is".to_owned(), count(p.partition_rows_per_s_max)],
            ["copies of ingest that are of use".to_owned(), format!("{:.0}", p.copies_useful)],
        ],
    )
}

fn growth(plan: &Plan) -> String {
    table(
        &[
            "rows of a timeline",
            "as",
            "nodes",
            "parts",
            "fullest part, rows",
            "rows a leaf",
            "node bytes",
            "root bytes",
            "cells, bytes written by a batch of 1 / 100 / 1000 rows",
            "cells, row reads a page",
        ],
        plan.growth.iter().map(|growth| {
            let writes: Vec<String> = growth
                .writes
                .iter()
                .map(|write| format!("{:.1}, {}", write.cells, count(write.bytes)))
                .collect();
            let order = match growth.order {
                super::Order::AsItHappens => "it happens",
                super::Order::Backfill => "a backfill",
            };
            [
                count(growth.rows as f64),
                format!("{order}{}", if growth.simulated { "" } else { ", told from the one above" }),
                count(growth.nodes),
                count(growth.parts),
                count(growth.part_rows_max as f64),
                format!("{:.0}", growth.leaf_rows),
                count(growth.node_bytes),
                count(growth.root_bytes),
                writes.join(" / "),
                format!("{:.2}, {:.2}", growth.page_cells, growth.page_row_reads),
            ]
        }),
    )
}

fn costs(plan: &Plan) -> anyhow::Result<String> {
    let Value::Object(costs) = serde_json::to_value(&plan.costs)? else { return Ok(String::new()) };
    Ok(table(
        &["cost", "value", "", "from"],
        costs.into_iter().map(|(name, cost)| {
            let text = |field: &str| cost[field].as_str().unwrap_or_default().to_owned();
            let basis = if cost["measured"] == true { "measured" } else { "estimated" };
            [name, format!("{} {}", cost["value"], text("unit")), basis.to_owned(), text("source")]
        }),
    ))
}

/// The options, which say themselves what they are.
fn assumptions(plan: &Plan) -> anyhow::Result<String> {
    let values = serde_json::to_value(&plan.assumptions)?;
    let command = Options::augment_args(clap::Command::new("plan"));
    let rows = command.get_arguments().filter_map(|option| {
        let name = option.get_long()?;
        let value = values.get(name.replace('-', "_"))?;
        let help = option.get_help().map(ToString::to_string).unwrap_or_default();
        Some([format!("--{name}"), value.to_string(), help])
    });
    Ok(table(&["assumption", "value", "what it is"], rows))
}

fn table<const COLUMNS: usize>(
    head: &[&str; COLUMNS],
    rows: impl IntoIterator<Item = [String; COLUMNS]>,
) -> String {
    let mut lines = vec![format!("| {} |", head.join(" | ")), format!("|{}", " --- |".repeat(COLUMNS))];
    lines.extend(rows.into_iter().map(|row| format!("| {} |", row.join(" | "))));
    lines.join("\n")
}

/// Three digits, and a word for the rest.
fn count(number: f64) -> String {
    let (unit, name) = match number.abs() {
        size if size >= 1e9 => (1e9, " billion"),
        size if size >= 1e6 => (1e6, " million"),
        size if size >= 1e4 => (1e3, " thousand"),
        _ => (1.0, ""),
    };
    let number = number / unit;
    let text = match number.abs() {
        size if size >= 100.0 || number.fract() == 0.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    };
    format!("{text}{name}")
}
