//! What things cost, as measured: `loadtest/costs.json`, each figure with where it comes from.

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// The figures that the program was built with.
const BUILT_IN: &str = include_str!("../../costs.json");

/// A figure.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cost {
    pub(crate) value: f64,
    pub(crate) unit: String,
    /// Measured; otherwise estimated until it is.
    pub(crate) measured: bool,
    /// Where and how.
    pub(crate) source: String,
}

/// All figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Costs {
    /// What one copy of ingest takes flat out.
    pub(crate) ingest_events_per_s: Cost,
    /// What ingest's processors do for an event, both stages.
    pub(crate) ingest_cpu_us: Cost,
    /// What ingest has in memory flat out.
    pub(crate) ingest_memory_bytes: Cost,
    /// What one replica's processors do for the writes of an event: rows, tallies, what its send knew.
    pub(crate) store_event_cpu_us: Cost,
    /// What one replica's processors do where an owner asks whether a timeline has a tree, and marks it as known.
    pub(crate) store_touch_cpu_us: Cost,
    /// What one replica's processors do to read one key of a history again.
    pub(crate) store_key_read_cpu_us: Cost,
    /// What one replica's processors do for a page of a hundred rows.
    pub(crate) store_page_cpu_us: Cost,
    /// What query's processors do for such a page.
    pub(crate) query_page_cpu_us: Cost,
    /// What one replica keeps on disk of an event: both rows, and its share of tallies and sends.
    pub(crate) disk_bytes: Cost,
    /// What one replica keeps on disk of a row.
    pub(crate) row_disk_bytes: Cost,
    /// A raw event in Kafka, compressed as its producer does.
    pub(crate) raw_event_bytes: Cost,
    /// An event's rows in the internal topic.
    pub(crate) placed_event_bytes: Cost,
    /// A key that an owner holds.
    pub(crate) held_key_bytes: Cost,
}

impl Costs {
    /// Those of `file`, else those that the program was built with.
    pub(crate) fn read(file: Option<&Path>) -> anyhow::Result<Costs> {
        match file {
            Some(file) => {
                let text = std::fs::read_to_string(file)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                serde_json::from_str(&text).with_context(|| format!("{} holds no costs", file.display()))
            }
            None => Ok(serde_json::from_str(BUILT_IN)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_costs_are_read() {
        let costs = Costs::read(None).expect("sound");
        assert!(costs.disk_bytes.value >= costs.row_disk_bytes.value);
    }
}
