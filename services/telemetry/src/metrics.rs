//! Every metric of Backstamp, with its help text. Names and units as Prometheus asks: `_total` for counters, base units.

use std::sync::LazyLock;

use prometheus::{
    Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// Where every metric is registered.
pub static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::new);

macro_rules! metrics {
    ($($name:ident: $kind:ty = $make:expr, $metric:literal, $help:literal;)*) => {
        $(#[doc = concat!("`", $metric, "`: ", $help)]
        pub static $name: LazyLock<$kind> = LazyLock::new(|| register($make($metric, $help)));)*

        /// Registers every metric, so that each is shown before it first counts.
        fn register_all() {
            $(LazyLock::force(&$name);)*
        }
    };
}

metrics! {
    EVENTS: IntCounterVec = |name, help| counters(name, help, &["outcome"]),
        "backstamp_events_total", "Events by what became of them: projected, duplicate, list_management_click, expired, dead_letter, waiting_for_send, forgotten (its contact was), no_timeline (valid, but of no contact and no campaign that could show it), unreadable (it waited, and this version cannot read it).";
    DEAD_LETTERS: IntCounterVec = |name, help| counters(name, help, &["code"]),
        "backstamp_dead_letters_total", "Messages sent to the dead-letter topic, by the code of their refusal.";
    REFERENCES: IntCounterVec = |name, help| counters(name, help, &["outcome"]),
        "backstamp_references_total", "References by what became of them: stored, dead_letter.";
    JOINED: IntCounter = counter,
        "backstamp_events_joined_total", "Events completed by a send that came after them.";
    LAG_MESSAGES: IntGaugeVec = |name, help| gauges(name, help, &["topic", "partition"]),
        "backstamp_consumer_lag_messages", "Messages of a partition that are not done yet.";
    LAG_SECONDS: IntGaugeVec = |name, help| gauges(name, help, &["topic", "partition"]),
        "backstamp_consumer_lag_seconds", "How long ago everything of a partition was last done: the age of its oldest record that is not, or 0.";
    COMMITTED_OFFSET: IntGaugeVec = |name, help| gauges(name, help, &["topic", "partition"]),
        "backstamp_committed_offset", "Everything of a partition below this offset is done.";
    COMMITTED_AT: GaugeVec = |name, help| times(name, help, &["topic", "partition"]),
        "backstamp_committed_timestamp_seconds", "When an offset of a partition was last committed here, or the partition was assigned.";
    TOPIC_RETENTION: IntGaugeVec = |name, help| gauges(name, help, &["topic"]),
        "backstamp_topic_retention_seconds", "How long a topic keeps its records; none where it keeps them for ever.";
    VISIBLE_UNTIL: GaugeVec = |name, help| times(name, help, &[]),
        "backstamp_visible_until_timestamp_seconds", "Everything published until then is visible: what answers say in X-Backstamp-Visible-Until.";
    COMMITS: IntCounterVec = |name, help| counters(name, help, &["topic", "outcome"]),
        "backstamp_offset_commits_total", "Offset commits: done, refused (the partition was lost meanwhile), failed.";
    REBALANCES: IntCounterVec = |name, help| counters(name, help, &["topic", "kind"]),
        "backstamp_rebalances_total", "Partitions assigned and revoked.";
    OFFSETS_LOST: IntCounterVec = |name, help| counters(name, help, &["topic", "partition"]),
        "backstamp_offsets_lost_total", "Records that the log had removed before they were read: its retention is too short, or somebody deleted them.";
    LOG_RESTARTS: IntCounterVec = |name, help| counters(name, help, &["topic", "partition"]),
        "backstamp_log_restarts_total", "Times that a partition's log was found to begin anew, because its topic was deleted and created again. What was not read of the old one is gone.";
    BATCH_RECORDS: HistogramVec = |name, help| histograms(name, help, &["stage"], COUNTS),
        "backstamp_batch_records", "Records in a batch, by stage: place, own.";
    BATCH_SECONDS: HistogramVec = |name, help| histograms(name, help, &["stage"], SECONDS),
        "backstamp_batch_duration_seconds", "Time to work through a batch, by stage: place, own.";
    STORE_SECONDS: HistogramVec = |name, help| histograms(name, help, &["statement"], SECONDS),
        "backstamp_store_duration_seconds", "Time of a request to the store, by statement.";
    STORE_ERRORS: IntCounterVec = |name, help| counters(name, help, &["statement"]),
        "backstamp_store_errors_total", "Requests to the store that failed, by statement.";
    RETRIES: IntCounterVec = |name, help| counters(name, help, &["step"]),
        "backstamp_retries_total", "Steps of ingest tried again because the store or the log failed.";
    BLOCKED: IntGaugeVec = |name, help| gauges(name, help, &["step"]),
        "backstamp_blocked_steps", "Steps of ingest that have failed and not gone through since. Nothing behind them is committed meanwhile.";
    LOG_ERRORS: IntCounterVec = |name, help| counters(name, help, &["operation"]),
        "backstamp_log_errors_total", "Requests to the event log that failed, by operation.";
    TREES: IntCounterVec = |name, help| counters(name, help, &["change"]),
        "backstamp_tally_changes_total", "Changes of tally trees: built, leaf_loaded, leaf_split, node_split, node_rebuilt, part_added, outranked (first trees left out, for the partition was taken over).";
    VISIBLE_SECONDS: HistogramVec = |name, help| histograms(name, help, &["since"], DELAYS),
        "backstamp_visible_delay_seconds", "Time until an event's rows were written: since it occurred (repeats included), since it was published.";
    REQUESTS: IntCounterVec = |name, help| counters(name, help, &["route", "status"]),
        "backstamp_http_requests_total", "HTTP requests by route and status.";
    REQUEST_SECONDS: HistogramVec = |name, help| histograms(name, help, &["route"], SECONDS),
        "backstamp_http_request_duration_seconds", "Time to answer an HTTP request, by route.";
    PAGES: IntCounterVec = |name, help| counters(name, help, &["endpoint", "by"]),
        "backstamp_pages_total", "Pages by how they and their totals were found: tree, scan (a small timeline), contact_scan (a campaign's contact filter).";
    ROWS_READ: IntCounterVec = |name, help| counters(name, help, &["endpoint"]),
        "backstamp_rows_read_total", "Rows and row keys read for pages and totals.";
    ROWS_SERVED: IntCounterVec = |name, help| counters(name, help, &["endpoint"]),
        "backstamp_rows_served_total", "Rows in answers.";
    TREE_MISMATCHES: IntCounter = counter,
        "backstamp_tally_mismatches_total", "Nodes whose parts differed when a page was read; the parts were trusted.";
    INTAKE: IntCounterVec = |name, help| counters(name, help, &["kind", "outcome"]),
        "backstamp_intake_records_total", "Events and references that came over HTTP: accepted, or the code of their rejection.";
    KEY_LOOKUPS: IntCounterVec = |name, help| counters(name, help, &["outcome"]),
        "backstamp_key_lookups_total", "API keys looked up: cached, found, unknown, failed.";
}

const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
/// From what is quick to what comes from a sender that was away for days.
const DELAYS: &[f64] = &[
    0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86_400.0,
    604_800.0,
];
const COUNTS: &[f64] = &[1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0];

/// What becomes of events: the labels of [`EVENTS`].
const OUTCOMES: [&str; 9] = [
    "projected",
    "duplicate",
    "list_management_click",
    "expired",
    "dead_letter",
    "waiting_for_send",
    "unreadable",
    "forgotten",
    "no_timeline",
];
/// Why messages are refused: the labels of [`DEAD_LETTERS`], as the domain names them.
const CODES: [&str; 9] = [
    "malformed_json",
    "missing_field",
    "invalid_field",
    "unknown_type",
    "unknown_kind",
    "invalid_time",
    "time_ahead",
    "too_large",
    "key_mismatch",
];

/// Steps of ingest that alerts and dashboards look at: labels of [`RETRIES`] and [`BLOCKED`].
const STEPS: [&str; 5] = ["publish_rows", "publish_orders", "publish_dead_letters", "commit", "write_rows"];
/// The labels of [`KEY_LOOKUPS`].
const LOOKUPS: [&str; 4] = ["cached", "found", "unknown", "failed"];

/// Every metric in Prometheus' text format.
pub fn render() -> Vec<u8> {
    register_all();
    // What alerts ask for is there from the start: absent is not 0.
    for outcome in OUTCOMES {
        EVENTS.with_label_values(&[outcome]);
    }
    for code in CODES {
        DEAD_LETTERS.with_label_values(&[code]);
    }
    for step in STEPS {
        RETRIES.with_label_values(&[step]);
        BLOCKED.with_label_values(&[step]);
    }
    for outcome in LOOKUPS {
        KEY_LOOKUPS.with_label_values(&[outcome]);
    }
    let mut text = Vec::new();
    if let Err(error) = TextEncoder::new().encode(&REGISTRY.gather(), &mut text) {
        tracing::error!(%error, "metrics could not be written");
    }
    text
}

fn register<M: prometheus::core::Collector + Clone + 'static>(made: prometheus::Result<M>) -> M {
    let metric = made.expect("a metric's declaration is valid");
    REGISTRY.register(Box::new(metric.clone())).expect("a metric's name is its own");
    metric
}

fn counter(name: &str, help: &str) -> prometheus::Result<IntCounter> {
    IntCounter::new(name, help)
}

fn counters(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

fn gauges(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
    IntGaugeVec::new(Opts::new(name, help), labels)
}

/// Instants, as seconds since 1970.
fn times(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<GaugeVec> {
    GaugeVec::new(Opts::new(name, help), labels)
}

fn histograms(name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> prometheus::Result<HistogramVec> {
    HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)
}
