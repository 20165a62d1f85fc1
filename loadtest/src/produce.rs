//! `loadtest produce`: a believable mix of events, at a rate or flat out, to Kafka, to the HTTP intake or to standard output.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::json;

use crate::client::Server;
use crate::intake::{self, Posting};
use crate::mix::json::Writer;
use crate::mix::{Kind, Mix};
use crate::options::MixOptions;
use crate::schedule::Schedule;
use crate::{progress, publish};

/// Publishes a believable mix of events, and says what must show of it.
#[derive(Args)]
pub(crate) struct Options {
    /// Where the events go.
    #[arg(long, value_enum)]
    to: Destination,
    #[command(flatten)]
    mix: MixOptions,
    /// Events a second, whether the server keeps up or not; flat out, if not given.
    #[arg(long)]
    rate: Option<f64>,
    /// Kafka: bootstrap servers.
    #[arg(long, env = "BACKSTAMP_KAFKA_BROKERS", default_value = "127.0.0.1:9092")]
    kafka_brokers: String,
    /// Kafka: what the names of all topics start with.
    #[arg(long, env = "BACKSTAMP_TOPIC_PREFIX", default_value = "")]
    topic_prefix: String,
    /// Kafka, standard output: the account of the events.
    #[arg(long, default_value = "loadtest")]
    account: String,
    /// HTTP: the `dev` or `collect`, on this machine.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// HTTP: a key with `events:write`.
    #[arg(long, env = "LOADTEST_KEY", hide_env_values = true)]
    key: Option<String>,
    /// HTTP: events in one request.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    batch: u64,
    /// HTTP: requests that are under way at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: u16,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Destination {
    Kafka,
    Http,
    Stdout,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let mut mix = options.mix.mix()?;
    // Over HTTP the key says whose they are.
    mix.account = (options.to != Destination::Http).then(|| options.account.clone());
    let mix = Arc::new(mix);
    let bar = progress::events("publishing", mix.arrivals());
    let begun = Instant::now();
    let bytes = match options.to {
        Destination::Kafka => {
            let topic = format!("{}mail.events", options.topic_prefix);
            publish::publish(&options.kafka_brokers, &topic, &mix, options.rate, &bar).await?.bytes
        }
        Destination::Http => {
            let key = options.key.as_deref().context("--key is needed")?;
            let server = Server::new(&options.url, Some(key))?;
            let connections = usize::from(options.connections);
            let posting = Posting { batch: options.batch, connections, per_s: options.rate };
            intake::post(&server, &mix, posting, &bar).await?
        }
        Destination::Stdout => print(&mix, options.rate).await?,
    };
    let seconds = begun.elapsed().as_secs_f64();
    bar.finish_and_clear();
    tell(&mix, bytes, seconds);
    Ok(ExitCode::SUCCESS)
}

async fn print(mix: &Mix, per_s: Option<f64>) -> anyhow::Result<u64> {
    let schedule = Schedule::start(per_s, mix.arrivals());
    let mut out = std::io::BufWriter::with_capacity(1 << 18, std::io::stdout().lock());
    let mut writer = Writer::new(mix);
    let (mut line, mut bytes) = (Vec::new(), 0);
    while let Some(due) = schedule.next().await {
        line.clear();
        writer.write(&mix.arrival(due.number), &mut line);
        bytes += line.len() as u64;
        line.push(b'\n');
        out.write_all(&line)?;
        if per_s.is_some() {
            out.flush()?;
        }
    }
    out.flush()?;
    Ok(bytes)
}

/// What was published and what must show, on standard error: standard output may hold the events.
#[expect(clippy::print_stderr, reason = "what a person or a script wants to read")]
fn tell(mix: &Mix, bytes: u64, seconds: f64) {
    let totals = mix.totals();
    let of_kind = |kind: Kind| totals.iter().map(|of| of[kind as usize]).sum::<u64>();
    let types: serde_json::Map<_, _> =
        Kind::ALL.iter().map(|kind| (kind.shown().to_owned(), of_kind(*kind).into())).collect();
    let mut largest: Vec<(u64, u32)> = totals.iter().map(|of| of.iter().sum()).zip(0..).collect();
    largest.sort_unstable_by(|one, other| other.cmp(one));
    let told = json!({
        "name": mix.name,
        "now_ms": mix.now_ms(),
        "published": mix.arrivals(),
        "distinct": mix.count(),
        "bytes": bytes,
        "seconds": seconds,
        "events_per_s": mix.arrivals() as f64 / seconds,
        "campaigns": largest.iter().filter(|(total, _)| *total > 0).count(),
        "largest": largest.iter().take(3).map(|(total, campaign)| json!({
            "campaign_id": mix.campaign_id(*campaign), "total": total,
        })).collect::<Vec<_>>(),
        "totals_by_type": types,
    });
    eprintln!("{told:#}");
}
