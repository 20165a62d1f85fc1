//! `backstamp check`: looks at everything that the services need, and says what is missing or wrong and how to mend it.

use anyhow::bail;
use clap::Args;
use event_log::TopicSettings;
use event_store::scylla::{Live, ScyllaConfig, read_live};
use serde_json::json;
use telemetry::finding::{Finding, Level};

use crate::options::{PipelineOptions, kafka_of};
use crate::run::{say, system_clock};

/// Connects to everything with the given settings, and says what is missing or wrong and how to mend it: a line each, ok, warning or error.
/// Changes nothing. Ends with 0 where there is no error.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pipeline: PipelineOptions,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let clock = system_clock();
    let given = options.pipeline.scylla.config();
    // What is away or missing is found below.
    let live = read_live(&given).await.unwrap_or_else(|_| Live::at_home(given.keyspace.clone()));
    let kafka = kafka_of(&live, options.pipeline.kafka("backstamp-check")?);
    let settings = TopicSettings {
        retention_days: options.pipeline.retention.retention_days,
        ..TopicSettings::default()
    };
    let moved = (live.keyspace != given.keyspace).then(|| {
        Finding::ok(
            "keyspace",
            format!("{} is live, where everybody was moved from {}", live.keyspace, given.keyspace),
        )
    });
    let scylla = ScyllaConfig { keyspace: live.keyspace, ..given };
    let (of_scylla, of_kafka) = tokio::join!(
        Box::pin(event_store::scylla::inspect(&scylla, || clock())),
        Box::pin(event_log::inspect(&kafka, &settings, || clock())),
    );
    let findings: Vec<Finding> = moved.into_iter().chain(of_scylla).chain(of_kafka).collect();
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (errors, warnings) = (count(Level::Error), count(Level::Warning));
    if options.json {
        let shown: Vec<_> = findings.iter().map(shown).collect();
        say(&json!({ "ok": errors == 0, "errors": errors, "warnings": warnings, "findings": shown })
            .to_string());
    } else {
        for Finding { level, about, found, mend } in &findings {
            let mend = if mend.is_empty() { String::new() } else { format!(" -- {mend}") };
            say(&format!("{level:<7}  {about}: {found}{mend}"));
        }
    }
    if errors > 0 {
        bail!("{errors} of {} things that were looked at must be mended", findings.len());
    }
    Ok(())
}

fn shown(finding: &Finding) -> serde_json::Value {
    let Finding { level, about, found, mend } = finding;
    json!({ "level": level.to_string(), "about": about, "found": found, "mend": mend })
}
