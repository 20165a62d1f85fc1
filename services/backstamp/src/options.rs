//! Options that subcommands share. Each has an environment variable `BACKSTAMP_…`; one that is set but empty counts as not set.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use edge::RateLimit;
use event_log::KafkaConfig;
use event_store::scylla::{Live, ScyllaConfig};
use timeline::filter::ListManagementFilter;
use timeline::time::{DAY_MS, parse_date, parse_date_time};
use timeline::{Id, Timestamp};
use uuid::Uuid;

/// Logs.
#[derive(Args)]
pub(crate) struct LogOptions {
    /// What is logged: a level, or directives such as info,ingest=debug.
    #[arg(long, env = "BACKSTAMP_LOG", default_value = "info", global = true)]
    pub(crate) log: String,
    /// text or json, to standard error.
    #[arg(long, env = "BACKSTAMP_LOG_FORMAT", default_value = "text", global = true)]
    pub(crate) log_format: telemetry::logs::Format,
    /// Where traces go: an OTLP collector over HTTP, http://host:4318. None are made without it.
    #[arg(long, env = "BACKSTAMP_OTLP_ENDPOINT", global = true)]
    pub(crate) otlp_endpoint: Option<String>,
    /// How many of the traces that begin here are sent, from 0 to 1; whoever begins one elsewhere decides for us.
    #[arg(long, env = "BACKSTAMP_OTLP_SAMPLE_RATIO", default_value = "1", global = true, value_parser = parse_ratio)]
    pub(crate) otlp_sample_ratio: f64,
}

impl LogOptions {
    /// Where the traces of `service` go, if anywhere.
    pub(crate) fn traces(&self, service: &str) -> Option<telemetry::traces::Settings> {
        let endpoint = self.otlp_endpoint.clone().filter(|endpoint| !endpoint.is_empty())?;
        Some(telemetry::traces::Settings {
            endpoint,
            sample_ratio: self.otlp_sample_ratio,
            service: format!("backstamp-{service}"),
        })
    }
}

fn parse_ratio(text: &str) -> Result<f64, String> {
    let ratio: Option<f64> = text.parse().ok();
    ratio.filter(|ratio| (0.0..=1.0).contains(ratio)).ok_or_else(|| format!("'{text}' is not from 0 to 1"))
}

/// How long events are kept.
#[derive(Args, Clone, Copy)]
pub(crate) struct RetentionOptions {
    /// How long events are kept and shown, in days of event time.
    #[arg(long, env = "BACKSTAMP_RETENTION_DAYS", default_value_t = 180, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) retention_days: u32,
}

impl RetentionOptions {
    pub(crate) fn retention_ms(self) -> i64 {
        i64::from(self.retention_days) * DAY_MS
    }
}

/// How many requests an account may make.
#[derive(Args, Clone)]
pub(crate) struct LimitOptions {
    /// Requests an account may make of one process, reads and intake apart: 1000/min, 20/s, 5000/h or off.
    #[arg(long, env = "BACKSTAMP_RATE_LIMIT", default_value = "1000/min", value_parser = RateLimit::parse)]
    pub(crate) rate_limit: RateLimit,
}

/// Which clicks are no engagement.
#[derive(Args, Clone)]
pub(crate) struct FilterOptions {
    /// URLs of list-management links, beside those that events mark by `link`: patterns [account=]host/path[?name[=value]] set apart by
    /// commas; *.domain is any host below it, * any text within a segment of the path, a last segment ** everything below.
    #[arg(
        long,
        env = "BACKSTAMP_LIST_MANAGEMENT_URLS",
        default_value = "",
        hide_default_value = true,
        value_parser = ListManagementFilter::parse
    )]
    pub(crate) list_management_urls: ListManagementFilter,
}

/// Where Kafka is.
#[derive(Args, Clone)]
pub(crate) struct KafkaOptions {
    /// Bootstrap servers: host:port, set apart by commas.
    #[arg(long, env = "BACKSTAMP_KAFKA_BROKERS", default_value = "127.0.0.1:9092")]
    pub(crate) kafka_brokers: String,
    /// Settings for librdkafka: name=value, set apart by commas (a comma in a value is written \,).
    #[arg(
        long,
        env = "BACKSTAMP_KAFKA_OPTIONS",
        default_value = "",
        hide_default_value = true,
        hide_env_values = true
    )]
    pub(crate) kafka_options: String,
    /// What the names of all topics start with.
    #[arg(long, env = "BACKSTAMP_TOPIC_PREFIX", default_value = "", hide_default_value = true)]
    pub(crate) topic_prefix: String,
    /// What the name of the internal topic starts with behind that. Where `replay` has moved everybody, it says what does.
    #[arg(long, env = "BACKSTAMP_INTERNAL_PREFIX", default_value = "", hide_default_value = true)]
    pub(crate) internal_prefix: String,
}

impl KafkaOptions {
    pub(crate) fn config(&self, client_id: &str, group: &str) -> anyhow::Result<KafkaConfig> {
        Ok(KafkaConfig {
            brokers: self.kafka_brokers.clone(),
            group: group.to_owned(),
            client_id: client_id.to_owned(),
            topic_prefix: self.topic_prefix.clone(),
            internal_prefix: self.internal_prefix.clone(),
            options: event_log::parse_options(&self.kafka_options)?,
        })
    }
}

/// Where Scylla is.
#[derive(Args, Clone)]
pub(crate) struct ScyllaOptions {
    /// Nodes to begin with: host or host:port (9042), set apart by commas.
    #[arg(long, env = "BACKSTAMP_SCYLLA_NODES", default_value = "127.0.0.1:9042", value_delimiter = ',')]
    pub(crate) scylla_nodes: Vec<String>,
    /// The keyspace of the tables, and of the word which other one `replay` has moved everybody to, if it has.
    #[arg(long, env = "BACKSTAMP_KEYSPACE", default_value = "backstamp")]
    pub(crate) keyspace: String,
    /// The user, where the cluster asks for one.
    #[arg(long, env = "BACKSTAMP_SCYLLA_USER")]
    pub(crate) scylla_user: Option<String>,
    /// The user's password; better given by the environment.
    #[arg(long, env = "BACKSTAMP_SCYLLA_PASSWORD", hide_env_values = true)]
    pub(crate) scylla_password: Option<String>,
    /// A PEM file of the authorities that sign the nodes' certificates: connections are TLS then.
    #[arg(long, env = "BACKSTAMP_SCYLLA_CA")]
    pub(crate) scylla_ca: Option<PathBuf>,
    /// The datacentre to ask first, and where `schema apply` creates the tables.
    #[arg(long, env = "BACKSTAMP_SCYLLA_DATACENTER")]
    pub(crate) scylla_datacenter: Option<String>,
}

impl ScyllaOptions {
    pub(crate) fn config(&self) -> ScyllaConfig {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        ScyllaConfig {
            user: given(&self.scylla_user),
            password: given(&self.scylla_password),
            ca: self.scylla_ca.clone().filter(|path| !path.as_os_str().is_empty()),
            datacenter: given(&self.scylla_datacenter),
            ..ScyllaConfig::new(self.scylla_nodes.clone(), self.keyspace.clone())
        }
    }
}

/// Where `ingest` reads and writes, for itself and for the tools that look at what it does: as it was given them.
#[derive(Args, Clone)]
pub(crate) struct PipelineOptions {
    #[command(flatten)]
    pub(crate) kafka: KafkaOptions,
    #[command(flatten)]
    pub(crate) scylla: ScyllaOptions,
    #[command(flatten)]
    pub(crate) retention: RetentionOptions,
    /// The consumer group of the live ingest; a new one starts at the oldest record.
    #[arg(long, env = "BACKSTAMP_GROUP", default_value = "backstamp-ingest")]
    pub(crate) group: String,
}

impl PipelineOptions {
    /// Kafka with ingest's group.
    pub(crate) fn kafka(&self, client_id: &str) -> anyhow::Result<KafkaConfig> {
        self.kafka.config(client_id, &self.group)
    }
}

/// Kafka with the group and the internal topic of the ingest that fills what is live.
pub(crate) fn kafka_of(live: &Live, kafka: KafkaConfig) -> KafkaConfig {
    match live.filled_by.clone() {
        None => kafka,
        Some((group, internal_prefix)) => KafkaConfig { group, internal_prefix, ..kafka },
    }
}

/// A campaign's, event's or other id.
pub(crate) fn parse_id(text: &str) -> Result<Id, String> {
    Id::parse(text).ok_or_else(|| format!("'{text}' is no id: expected {}", Id::EXPECTED))
}

/// A contact's id.
pub(crate) fn parse_contact(text: &str) -> Result<Uuid, String> {
    timeline::id::parse_uuid(text)
        .ok_or_else(|| format!("'{text}' is no contact's id: expected a UUID (RFC 9562)"))
}

/// An instant, or a span before now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instant {
    At(Timestamp),
    Ago(Duration),
}

impl Instant {
    /// The instant, where it is `now`.
    pub(crate) fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Instant::At(at) => at,
            Instant::Ago(span) => now.minus_ms(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)),
        }
    }
}

/// An instant in RFC 3339, a date, or a span ago: `2026-04-17T14:23:05Z`, `2026-04-17`, `24h`.
pub(crate) fn parse_instant(text: &str) -> Result<Instant, String> {
    if let Some(at) = parse_date(text) {
        return Ok(Instant::At(at));
    }
    match parse_date_time(text) {
        Some(read) => Ok(Instant::At(read.at)),
        None => parse_span(text).map(Instant::Ago).map_err(|_| {
            format!("'{text}' is no instant: expected RFC 3339, such as 2026-04-17T14:23:05Z, or a span ago, such as 24h")
        }),
    }
}

/// A span of time: `90d`, `12h`, `30m`, `45s`.
pub(crate) fn parse_span(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no span of time: expected a number and d, h, m or s, such as 90d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "d" => 86_400,
        "h" => 3600,
        "m" => 60,
        "s" => 1,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    // Ten thousand years are enough.
    number
        .checked_mul(seconds)
        .filter(|span| (1..=315_360_000_000).contains(span))
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_read() {
        let at = Timestamp(1_776_384_000_000);
        assert_eq!(parse_instant("2026-04-17"), Ok(Instant::At(at)));
        assert_eq!(parse_instant("2026-04-17T00:00:05Z"), Ok(Instant::At(at.plus_ms(5000))));
        assert_eq!(parse_instant("24h").map(|day| day.at(at)), Ok(at.minus_ms(DAY_MS)));
        assert!(parse_instant("yesterday").is_err());
    }

    #[test]
    fn spans_are_read() {
        assert_eq!(parse_span("90d"), Ok(Duration::from_secs(90 * 86_400)));
        assert_eq!(parse_span("45s"), Ok(Duration::from_secs(45)));
        for bad in ["", "d", "90", "-1d", "0d", "1.5h", "90 d", "9999999999999999999d", "ä"] {
            assert!(parse_span(bad).is_err(), "{bad}");
        }
    }
}
