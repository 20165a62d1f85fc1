//! What Backstamp is measured against, and Backstamp itself beside it. Each starts what it needs on this machine, on free ports and
//! with empty data, and all of it ends when dropped.
//!
//! | module | what is measured |
//! | --- | --- |
//! | [`ours`] | Kafka to Cassandra by `backstamp ingest`: the full job |
//! | [`connect`] | Kafka to Cassandra by Kafka Connect with the DataStax sink engine: rows of two tables |
//! | [`bare_driver`] | memory to Cassandra by the bare driver: the mutations that `ingest` makes |
//! | [`postgres`] | events into two indexed tables of PostgreSQL, and pages out of one |
//! | [`bare_http`] | a web server that always answers the same bytes |
//!
//! They stand on [`servers`] (Kafka, Cassandra and our own services), [`topic`] (publishing), [`table`] (counting rows) and
//! [`freshness`] (how long from published to visible). Rows are counted in the tables, never told from offsets: a sink can commit
//! offsets of what it threw away. A load is a [`Mix`](crate::mix::Mix): each of its events is a row of two tables, whatever is repeated.

pub(crate) mod bare_driver;
pub(crate) mod bare_http;
pub(crate) mod connect;
pub(crate) mod freshness;
pub(crate) mod ours;
pub(crate) mod postgres;
pub(crate) mod servers;
mod table;
mod topic;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::dev::program_beside_us;
use crate::measure::Usage;
use crate::mix::Mix;
use crate::options::MixOptions;
use connect::Connect;
use freshness::Load;
use ours::Ours;
use servers::Servers;

/// Whose the events are where they come out of Kafka.
pub(crate) const ACCOUNT: &str = "loadtest";

/// Measures some of those that Backstamp is compared with, one after the other.
#[derive(Args)]
pub(crate) struct Options {
    /// Which of them.
    #[arg(value_enum, required = true)]
    peers: Vec<Peer>,
    #[command(flatten)]
    mix: MixOptions,
    /// For so many seconds: how long from published to visible, at half of the rate that was found.
    #[arg(long)]
    fresh_s: Option<u64>,
    /// The `backstamp` to run, by default the one beside this program.
    #[arg(long)]
    program: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// Kafka to Cassandra by `backstamp ingest`.
    Ours,
    /// Kafka to Cassandra by Kafka Connect.
    Connect,
    /// Memory to Cassandra by the bare driver.
    BareDriver,
    /// Events into two tables of PostgreSQL, and pages out of one.
    Postgres,
}

/// Measures, and prints what came of it as JSON.
pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let mut mix = options.mix.mix()?;
    mix.account = Some(ACCOUNT.to_owned());
    let program = options.program.map_or_else(program_beside_us, Ok)?;
    let servers = match options.peers.iter().any(|peer| *peer != Peer::Postgres) {
        true => Some(Servers::start().await?),
        false => None,
    };
    let mut found = Map::new();
    for peer in &options.peers {
        let name = format!("{peer:?}");
        let came = match (peer, &servers) {
            (Peer::Postgres, _) | (_, None) => postgres::measure(&mix).await?,
            (Peer::Ours, Some(servers)) => {
                Box::pin(measure_ours(servers, &program, &mix, options.fresh_s)).await?
            }
            (Peer::Connect, Some(servers)) => {
                Box::pin(measure_connect(servers, &mix, options.fresh_s)).await?
            }
            (Peer::BareDriver, Some(servers)) => {
                shown(&Box::pin(bare_driver::flat_out(servers, &program, &mix)).await?)
            }
        };
        found.insert(name, came);
    }
    print(&Value::Object(found))?;
    Ok(ExitCode::SUCCESS)
}

async fn measure_ours(
    servers: &Servers,
    program: &Path,
    mix: &Mix,
    fresh_s: Option<u64>,
) -> anyhow::Result<Value> {
    let mut ours = Ours::start(servers, program).await?;
    ours.flat_out(&another(mix, "warm", mix.count() / 4)).await?;
    let measured = ours.flat_out(mix).await?;
    let mut found = json!({ "flat_out": shown(&measured) });
    if let Some(fresh_s) = fresh_s {
        let per_s = measured.per_s() / 2.0;
        let mix = another(mix, "fresh", (per_s * fresh_s as f64) as u64);
        let first = Duration::from_secs(fresh_s / 3);
        found["fresh"] = json!(ours.freshness(Load { mix: &mix, per_s, first }).await?);
    }
    ours.remove().await?;
    Ok(found)
}

async fn measure_connect(servers: &Servers, mix: &Mix, fresh_s: Option<u64>) -> anyhow::Result<Value> {
    let mut connect = Connect::start(servers).await?;
    connect.flat_out(&another(mix, "warm", mix.count() / 4)).await?;
    let measured = connect.flat_out(mix).await?;
    let mut found = json!({ "flat_out": shown(&measured) });
    if let Some(fresh_s) = fresh_s {
        let per_s = measured.per_s() / 2.0;
        let mix = another(mix, "fresh", (per_s * fresh_s as f64) as u64);
        let first = Duration::from_secs(fresh_s / 3);
        found["fresh"] = json!(connect.freshness(Load { mix: &mix, per_s, first }).await?);
    }
    connect.remove().await?;
    Ok(found)
}

/// A mix of the same shape, of other events.
fn another(mix: &Mix, name: &str, events: u64) -> Mix {
    let mut another = Mix::new(mix.shape, name, events.max(1), mix.now_ms(), 7);
    another.account.clone_from(&mix.account);
    another
}

/// What was measured, with the figures that follow from it.
fn shown(measured: &Measured) -> Value {
    json!({ "measured": measured, "per_s": measured.per_s(), "cpu_us": measured.usage.iter().map(|usage| usage.cpu_us_per(measured.records)).collect::<Vec<_>>() })
}

#[expect(clippy::print_stdout, reason = "what a person or a script wants to read")]
fn print(found: &Value) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(found)?);
    Ok(())
}

/// What came of a load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Who did it: `Kafka Connect`.
    pub(crate) name: String,
    /// What is worth knowing of how: the batches that were best.
    pub(crate) how: String,
    /// Records worked through.
    pub(crate) records: u64,
    /// How long it took, in seconds.
    pub(crate) seconds: f64,
    /// Rows that were found in the tables afterwards: as many as there had to be.
    pub(crate) rows: u64,
    /// What each process used meanwhile; the one that did the work comes first.
    pub(crate) usage: Vec<Usage>,
}

impl Measured {
    /// Records a second.
    pub(crate) fn per_s(&self) -> f64 {
        self.records as f64 / self.seconds
    }

    /// Microseconds of a processor for each record, of the process that did the work.
    pub(crate) fn cpu_us(&self) -> f64 {
        self.usage.first().map_or(f64::NAN, |usage| usage.cpu_us_per(self.records))
    }
}
