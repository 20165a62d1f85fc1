//! `loadtest compare`: everything that is promised, measured side by side with what people use today, one phase after the other. What a
//! phase found is kept, so that a stopped comparison goes on where it was; after each the results are written anew.

mod check;
mod decode;
mod dev_ingest;
mod freshness;
mod ingest_kafka;
mod kept;
mod pages;
mod postgres_pages;
mod requests;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};

use crate::dev::program_beside_us;
use crate::intake::Posting;
use crate::report::machine::{self, Machine};
use crate::report::{Kept, Outcome, write_results};
use kept::KeptOutcomes;

/// Measures everything, and writes `loadtest/RESULTS.md` with tables, plots, the machine and the versions.
#[derive(Args)]
pub(crate) struct Options {
    /// Everything small, within minutes: shows that it runs. It has results of its own, `loadtest/results/quick`.
    #[arg(long)]
    quick: bool,
    /// Ten million events on Cassandra, too; with `--again pages-cassandra` where its pages were measured without.
    #[arg(long, conflicts_with = "quick")]
    full: bool,
    /// The most events of a campaign whose pages are measured, where less than all is to do.
    #[arg(long, default_value_t = 10_000_000)]
    largest: u64,
    /// Where the outcomes are kept.
    #[arg(long)]
    results: Option<PathBuf>,
    /// Measures a phase again that was measured at this commit already; may be given several times.
    #[arg(long, value_enum)]
    again: Vec<Phase>,
    /// Measures these phases alone; may be given several times.
    #[arg(long, value_enum)]
    only: Vec<Phase>,
    /// The program to measure; by default the `backstamp` beside this one, which is built first.
    #[arg(long)]
    program: Option<PathBuf>,
    /// What chance begins with.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A part of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Phase {
    Decode,
    PagesEmbedded,
    PagesCassandra,
    PostgresPages,
    DevIngest,
    Requests,
    IngestKafka,
    Freshness,
}

impl Phase {
    /// Every phase, in the order in which they are measured and told of.
    const ALL: [Phase; 8] = [
        Phase::Decode,
        Phase::PagesEmbedded,
        Phase::PagesCassandra,
        Phase::PostgresPages,
        Phase::DevIngest,
        Phase::Requests,
        Phase::IngestKafka,
        Phase::Freshness,
    ];

    /// Its name, as options and files have it.
    fn name(self) -> &'static str {
        match self {
            Phase::Decode => "decode",
            Phase::PagesEmbedded => "pages-embedded",
            Phase::PagesCassandra => "pages-cassandra",
            Phase::PostgresPages => "postgres-pages",
            Phase::DevIngest => "dev-ingest",
            Phase::Requests => "requests",
            Phase::IngestKafka => "ingest-kafka",
            Phase::Freshness => "freshness",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Phase::Decode => "Decoding to rows",
            Phase::PagesEmbedded => "Any page at any size: the embedded store",
            Phase::PagesCassandra => "Any page at any size: Cassandra",
            Phase::PostgresPages => "A page with its total, beside PostgreSQL",
            Phase::DevIngest => "Taking in over HTTP, beside PostgreSQL",
            Phase::Requests => "Requests a second, beside a bare web server",
            Phase::IngestKafka => "Kafka to Cassandra, beside Kafka Connect and the bare driver",
            Phase::Freshness => "Published to visible, beside Kafka Connect",
        }
    }

    async fn run(self, setting: &Setting) -> anyhow::Result<Outcome> {
        match self {
            Phase::Decode => Box::pin(decode::decode(setting)).await,
            Phase::PagesEmbedded => Box::pin(pages::embedded(setting)).await,
            Phase::PagesCassandra => Box::pin(pages::cassandra(setting)).await,
            Phase::PostgresPages => Box::pin(postgres_pages::postgres_pages(setting)).await,
            Phase::DevIngest => Box::pin(dev_ingest::dev_ingest(setting)).await,
            Phase::Requests => Box::pin(requests::requests(setting)).await,
            Phase::IngestKafka => Box::pin(ingest_kafka::ingest_kafka(setting)).await,
            Phase::Freshness => Box::pin(freshness::freshness(setting)).await,
        }
    }
}

/// Whose events are loaded, and what a key of theirs is for.
const ACCOUNT: &str = "loadtest";
const PERMISSIONS: [&str; 3] = ["campaigns:read", "contacts:read", "events:write"];
/// How a `dev` is loaded.
const POSTING: Posting = Posting { batch: 2000, connections: 4, per_s: None };

/// What all phases are given.
pub(crate) struct Setting {
    pub(crate) is_quick: bool,
    pub(crate) is_full: bool,
    /// The most events of a campaign whose pages are measured.
    pub(crate) largest: u64,
    /// The program that is measured.
    pub(crate) program: PathBuf,
    pub(crate) seed: u64,
}

impl Setting {
    /// `usual`, or `quick` where everything is to be small.
    pub(crate) fn pick<T>(&self, usual: T, quick: T) -> T {
        if self.is_quick { quick } else { usual }
    }
}

#[expect(clippy::print_stderr, reason = "what a person wants to read while it works")]
pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    ensure!(!cfg!(debug_assertions), "a comparison wants a release build: cargo run --release -p loadtest");
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let results = options.results.clone().unwrap_or_else(|| {
        let results = home.join("results");
        if options.quick { results.join("quick") } else { results }
    });
    // What is quick or kept elsewhere is not what the README quotes.
    let page = if options.quick || options.results.is_some() { results.clone() } else { home.to_owned() };
    let program = match &options.program {
        Some(program) => program.clone(),
        None => build(home).await?,
    };
    let setting = Setting {
        is_quick: options.quick,
        is_full: options.full,
        largest: options.largest,
        program,
        seed: options.seed,
    };

    let mut outcomes = KeptOutcomes::open(&results)?;
    let (machine, commit) = (Machine::this(), machine::commit());
    let mut failed = Vec::new();
    for phase in Phase::ALL {
        let is_wanted = options.only.is_empty() || options.only.contains(&phase);
        let is_missing = is_wanted && !outcomes.contains(phase.name(), &commit);
        if !is_missing && !options.again.contains(&phase) {
            continue;
        }
        eprintln!("{}", phase.title());
        let begun = Instant::now();
        match phase.run(&setting).await {
            Ok(outcome) => outcomes.keep(Kept {
                phase: phase.name().to_owned(),
                finished: chrono::Utc::now().format("%Y-%m-%d %H:%M UTC").to_string(),
                commit: commit.clone(),
                is_quick: options.quick,
                seconds: begun.elapsed().as_secs_f64(),
                outcome,
            })?,
            // The others may go well.
            Err(error) => {
                eprintln!("{}: {error:#}", phase.name());
                failed.push(phase.name());
            }
        }
        write_page(&page, home, &outcomes, &machine)?;
    }
    write_page(&page, home, &outcomes, &machine)?;
    eprintln!("the results are in {}", page.join("RESULTS.md").display());
    if !failed.is_empty() {
        bail!("not measured: {}", failed.join(", "));
    }
    let is_right = outcomes.all().values().all(|kept| kept.outcome.wrong.is_empty());
    Ok(if is_right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes `RESULTS.md` and its plots into the folder `page`.
fn write_page(page: &Path, home: &Path, outcomes: &KeptOutcomes, machine: &Machine) -> anyhow::Result<()> {
    let titles = Phase::ALL.map(|phase| (phase.name(), phase.title()));
    // There may be none yet.
    let findings = std::fs::read_to_string(home.join("FINDINGS.md")).unwrap_or_default();
    let text = write_results(&titles, outcomes.all(), machine, &findings);
    let plots = page.join("plots");
    std::fs::create_dir_all(&plots)?;
    std::fs::write(page.join("RESULTS.md"), text)?;
    for (phase, kept) in outcomes.all() {
        for plot in &kept.outcome.plots {
            std::fs::write(plots.join(format!("{phase}-{}.svg", plot.name)), plot.svg())?;
        }
    }
    Ok(())
}

/// Builds the program as it is now, and returns where it is.
async fn build(home: &Path) -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = tokio::process::Command::new(cargo)
        .args(["build", "--release", "--package", "backstamp"])
        .current_dir(home)
        .kill_on_drop(true)
        .status()
        .await
        .context("cargo cannot be run")?;
    ensure!(status.success(), "the program does not build: {status}");
    program_beside_us()
}
