//! `backstamp schema apply`: tables and topics.

use clap::{Args, Subcommand};
use event_log::TopicSettings;
use event_store::scylla::{ScyllaConfig, apply_schema};

use crate::options::{KafkaOptions, RetentionOptions, ScyllaOptions};

/// The tables in Scylla and the topics in Kafka.
#[derive(Subcommand)]
pub(crate) enum Command {
    Apply(ApplyOptions),
}

/// Creates the tables or brings them up to date, and creates the topics that are missing. It can be run again at any time.
#[derive(Args)]
pub(crate) struct ApplyOptions {
    #[command(flatten)]
    scylla: ScyllaOptions,
    #[command(flatten)]
    kafka: KafkaOptions,
    #[command(flatten)]
    retention: RetentionOptions,
    /// Copies of everything, in Scylla and in Kafka: by default 3, or as many as there are nodes if there are fewer.
    #[arg(long, env = "BACKSTAMP_REPLICATION_FACTOR", value_parser = clap::value_parser!(u32).range(1..=100))]
    replication_factor: Option<u32>,
    /// Partitions of a new mail.events: as many ingests can share the work of its first stage.
    #[arg(long, env = "BACKSTAMP_EVENTS_PARTITIONS", default_value_t = 12, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    events_partitions: i32,
    /// Prints what was done as JSON.
    #[arg(long)]
    json: bool,
}

#[expect(clippy::print_stdout, reason = "what a person or a script wants to read")]
pub(crate) async fn run(Command::Apply(options): Command) -> anyhow::Result<()> {
    let config = options.scylla.config();
    let mut tables = apply_schema(&config, options.replication_factor).await?;
    if tables.live.keyspace != config.keyspace {
        let config = ScyllaConfig { keyspace: tables.live.keyspace.clone(), ..config };
        let of_live = apply_schema(&config, options.replication_factor).await?;
        tables.migrations.extend(of_live.migrations);
        tables.warnings.extend(of_live.warnings);
    }
    let settings = TopicSettings {
        replication: options.replication_factor.and_then(|copies| i32::try_from(copies).ok()),
        events_partitions: options.events_partitions,
        retention_days: options.retention.retention_days,
    };
    let topics = event_log::ensure_topics(&options.kafka.config("backstamp-schema", "")?, &settings).await?;
    let warnings: Vec<&String> = tables.warnings.iter().chain(&topics.warnings).collect();
    if options.json {
        let report = serde_json::json!({
            "keyspace_created": tables.keyspace_created,
            "keyspace_live": tables.live.keyspace,
            "migrations_applied": tables.migrations,
            "topics_created": topics.created,
            "topics_present": topics.present,
            "warnings": warnings,
        });
        println!("{report}");
        return Ok(());
    }
    let list = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let migrations: Vec<String> = tables.migrations.iter().map(ToString::to_string).collect();
    println!(
        "keyspace {}: {}",
        options.scylla.keyspace,
        if tables.keyspace_created { "created" } else { "was there" }
    );
    if tables.live.keyspace != options.scylla.keyspace {
        println!("keyspace {} is live: it was brought up to date, too", tables.live.keyspace);
    }
    println!("migrations applied: {}", list(&migrations));
    println!("topics created: {}", list(&topics.created));
    println!("topics that were there: {}", list(&topics.present));
    for warning in warnings {
        println!("warning: {warning}");
    }
    Ok(())
}
