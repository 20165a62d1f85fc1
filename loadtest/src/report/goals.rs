//! What is to be reached, and against what.

use serde::{Deserialize, Serialize};

use super::show;

/// Something to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Goal {
    IngestMixed,
    IngestSmall,
    IngestCpu,
    IngestDriver,
    Decode,
    PostgresFirst,
    PostgresLast,
    PagesEmbeddedMedian,
    PagesEmbeddedP99,
    PagesCassandraMedian,
    PagesCassandraP99,
    SameSecondEmbedded,
    SameSecondCassandra,
    ContactEmbedded,
    ContactCassandra,
    DevIngest,
    Requests,
    FreshnessRatio,
    FreshnessP99,
    IngestMemory,
    QueryMemory,
    DevMemory,
    DiskEmbedded,
    DiskCassandra,
}

use Goal::*;

impl Goal {
    /// Every goal, in the order of the results.
    pub(crate) const ALL: [Goal; 24] = [
        IngestMixed,
        IngestSmall,
        IngestCpu,
        IngestDriver,
        Decode,
        PostgresFirst,
        PostgresLast,
        PagesEmbeddedMedian,
        PagesEmbeddedP99,
        PagesCassandraMedian,
        PagesCassandraP99,
        SameSecondEmbedded,
        SameSecondCassandra,
        ContactEmbedded,
        ContactCassandra,
        DevIngest,
        Requests,
        FreshnessRatio,
        FreshnessP99,
        IngestMemory,
        QueryMemory,
        DevMemory,
        DiskEmbedded,
        DiskCassandra,
    ];

    /// What is measured, and against what.
    pub(crate) fn words(self) -> (&'static str, &'static str) {
        const CONNECT: &str =
            "Kafka Connect with the DataStax sink engine, two mappings: verified rows a second";
        const FIRST: &str = "the first page at 10 thousand events";
        match self {
            IngestMixed => ("ingest on Kafka and Cassandra, campaigns of all sizes", CONNECT),
            IngestSmall => ("the same, 100,000 small campaigns interleaved", CONNECT),
            IngestCpu => ("CPU an event of `ingest`, campaigns of all sizes", "Kafka Connect's"),
            IngestDriver => (
                "ingest, campaigns of all sizes",
                "the bare scylla driver writing the same mutations, best batching",
            ),
            Decode => ("decode to rows, no I/O, one core", "serde_json into a struct of the same fields"),
            PostgresFirst => (
                "first page with total, 1 million events, HTTP, embedded store",
                "PostgreSQL, `count(*)` and `OFFSET`",
            ),
            PostgresLast => ("last page of the same", "the same"),
            PagesEmbeddedMedian => ("any page at any size, embedded: p50 of the worst", FIRST),
            PagesEmbeddedP99 => ("the same, p99", FIRST),
            PagesCassandraMedian => ("any page at any size, Cassandra: p50 of the worst", FIRST),
            PagesCassandraP99 => ("the same, p99", FIRST),
            SameSecondEmbedded => ("a million events of one second, embedded: p50 of the worst page", FIRST),
            SameSecondCassandra => ("the same, Cassandra", FIRST),
            ContactEmbedded => ("a contact of a million events, embedded: p50 of the worst page", FIRST),
            ContactCassandra => ("the same, Cassandra", FIRST),
            DevIngest => (
                "`dev`: HTTP in to visible, flat out",
                "PostgreSQL, the same two indexed tables, multi-row inserts",
            ),
            Requests => (
                "requests a second on the embedded store, random campaigns and pages",
                "bare axum, the same bytes",
            ),
            FreshnessRatio => {
                ("published to visible at half of full rate: p99", "Kafka Connect at half of its own")
            }
            FreshnessP99 => ("the same: p99", "a second"),
            IngestMemory => ("memory of `ingest`, flat out", ""),
            QueryMemory => ("memory of `query`", ""),
            DevMemory => ("memory of `dev` with 10 million events held", ""),
            DiskEmbedded => {
                ("bytes on disk an event, embedded: both projections and tallies", "the raw JSON")
            }
            DiskCassandra => ("the same, Cassandra", "the raw JSON"),
        }
    }

    fn limit(self) -> Limit {
        use Limit::{AtLeast, AtMost};
        match self {
            IngestMixed => AtLeast(2.0, "×"),
            IngestSmall => AtLeast(1.5, "×"),
            IngestCpu => AtMost(0.2, "×"),
            IngestDriver => AtLeast(0.8, "×"),
            Decode => AtLeast(0.6, "×"),
            PostgresFirst => AtLeast(50.0, "×"),
            PostgresLast => AtLeast(400.0, "×"),
            PagesEmbeddedMedian | PagesCassandraMedian => AtMost(1.2, "×"),
            PagesEmbeddedP99 | PagesCassandraP99 => AtMost(1.5, "×"),
            SameSecondEmbedded | SameSecondCassandra | ContactEmbedded | ContactCassandra => AtMost(3.0, "×"),
            DevIngest => AtLeast(5.0, "×"),
            Requests => AtLeast(0.5, "×"),
            FreshnessRatio => AtMost(1.0, "×"),
            FreshnessP99 => AtMost(1.0, "s"),
            IngestMemory => AtMost(256.0, "MB"),
            QueryMemory => AtMost(128.0, "MB"),
            DevMemory => AtMost(512.0, "MB"),
            DiskEmbedded | DiskCassandra => AtMost(1.0, "×"),
        }
    }

    /// The bound, as the results show it.
    pub(crate) fn bound(self) -> String {
        let (sign, bound, unit) = match self.limit() {
            Limit::AtLeast(bound, unit) => ("≥", bound, unit),
            Limit::AtMost(bound, unit) => ("≤", bound, unit),
        };
        format!("{sign} {bound} {unit}")
    }

    /// A figure of it, as the results show it.
    pub(crate) fn show(self, value: f64) -> String {
        let (Limit::AtLeast(_, unit) | Limit::AtMost(_, unit)) = self.limit();
        format!("{} {unit}", show(value))
    }

    /// Greater for a figure that is farther from the goal.
    pub(crate) fn badness(self, value: f64) -> f64 {
        match self.limit() {
            Limit::AtLeast(..) => -value,
            Limit::AtMost(..) => value,
        }
    }

    /// Whether `value` is what was to be reached.
    pub(crate) fn is_reached(self, value: f64) -> bool {
        match self.limit() {
            Limit::AtLeast(bound, _) => value >= bound,
            Limit::AtMost(bound, _) => value <= bound,
        }
    }
}

/// A bound and its unit.
enum Limit {
    AtLeast(f64, &'static str),
    AtMost(f64, &'static str),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_reached_on_its_side_of_the_bound() {
        assert!(IngestMixed.is_reached(2.0) && !IngestMixed.is_reached(1.99));
        assert!(IngestCpu.is_reached(0.2) && !IngestCpu.is_reached(0.21));
        assert!(!IngestMixed.is_reached(f64::NAN) && !IngestCpu.is_reached(f64::NAN));
        assert!(IngestMixed.badness(1.0) > IngestMixed.badness(2.0));
        assert!(IngestCpu.badness(1.0) < IngestCpu.badness(2.0));
        assert_eq!(IngestCpu.bound(), "≤ 0.2 ×");
        assert_eq!(DevMemory.show(301.4), "301 MB");
    }
}
