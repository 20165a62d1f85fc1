//! `loadtest read`: filters and pages of what `produce` has published, at a rate, whether the server keeps up or not.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use futures::future::try_join_all;
use serde_json::json;

use crate::client::{Connection, Server};
use crate::measure::Spread;
use crate::mix::shown::{Shown, Timeline, View};
use crate::mix::{Mix, scattered};
use crate::options::MixOptions;
use crate::progress;
use crate::schedule::Schedule;
use crate::views::Viewed;

/// Reads filters and pages at a rate. Latency counts from when a request was due, so waiting for a slow server counts, too.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    mix: MixOptions,
    /// The `dev` or `query`, on this machine.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// A key with `campaigns:read` and `contacts:read`.
    #[arg(long, env = "LOADTEST_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Which pages.
    #[arg(long, value_enum, default_value_t = Pages::Views)]
    pages: Pages,
    /// Requests a second.
    #[arg(long, default_value_t = 200.0)]
    rate: f64,
    /// For how long.
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// Connections, and so requests under way at once, at most.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Rows a page.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=100))]
    per_page: u64,
    /// Prints JSON in place of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pages {
    /// First, middle, last, of a rare type, of a time range, of a contact: of the largest campaign.
    Views,
    /// Any page of any campaign.
    Random,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    ensure!(options.rate > 0.0, "--rate is to be more than 0");
    let server = Server::new(&options.url, Some(options.key.as_deref().context("--key is needed")?))?;
    let mix = Arc::new(options.mix.mix()?);
    let count = (options.rate * f64::from(options.seconds)).ceil() as u64;
    let asked = Arc::new(match options.pages {
        Pages::Views => Asked::Views(Viewed::of_campaign(&mix, 0, options.per_page)),
        Pages::Random => Asked::Random(RandomPages::new(&mix, options.per_page)),
    });
    let bar = progress::events("reading", count);
    let schedule = Arc::new(Schedule::start(Some(options.rate), count));
    let readers = (0..options.connections).map(|_| {
        let (server, asked, schedule, bar) = (server.clone(), asked.clone(), schedule.clone(), bar.clone());
        let reader = async move {
            let mut connection = server.connect().await?;
            let mut read = Read::default();
            while let Some(due) = schedule.next().await {
                let (name, fault) = asked.ask(&mut connection, due.number).await;
                // From when it was due, not from when it was asked.
                read.took.entry(name).or_default().push(due.at.elapsed());
                read.faults.extend(fault);
                bar.inc(1);
            }
            anyhow::Ok(read)
        };
        async { tokio::spawn(reader).await? }
    });
    let mut all = Read::default();
    for read in try_join_all(readers).await? {
        read.took.into_iter().for_each(|(name, took)| all.took.entry(name).or_default().extend(took));
        read.faults.into_iter().for_each(|fault| *all.faults.entry(fault.0).or_default() += fault.1);
    }
    bar.finish_and_clear();
    all.print(options.json);
    Ok(if all.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is asked for.
enum Asked {
    Views(Vec<Viewed>),
    Random(RandomPages),
}

impl Asked {
    /// Asks for one page. Returns which one that was, and what was wrong with the answer.
    async fn ask(&self, connection: &mut Connection, number: u64) -> (&'static str, Option<(String, u64)>) {
        let (name, mix, view, want) = match self {
            Asked::Views(views) => {
                let viewed = &views[number as usize % views.len()];
                let (view, want) = viewed.turn(number as usize / views.len());
                (viewed.name, &viewed.mix, view.clone(), Some(want))
            }
            Asked::Random(pages) => ("random", &pages.mix, pages.view(number), None),
        };
        let fault = match connection.view(mix, &view).await {
            Err(error) => Some(format!("{name}: {error:#}")),
            Ok(shown) => match self {
                Asked::Views(_) => want.and_then(|want| shown.fault(want)),
                Asked::Random(pages) => pages.fault(&view, &shown),
            }
            .map(|fault| format!("{name} {fault}")),
        };
        (name, fault.map(|fault| (fault, 1)))
    }
}

/// Any page of any campaign, each campaign as likely as any other.
pub(crate) struct RandomPages {
    mix: Arc<Mix>,
    per_page: u64,
    /// Those that have events, and how many.
    campaigns: Vec<(u32, u64)>,
}

impl RandomPages {
    /// The pages of a mix's campaigns.
    pub(crate) fn new(mix: &Arc<Mix>, per_page: u64) -> RandomPages {
        let totals = mix.totals().into_iter().map(|of| of.iter().sum::<u64>());
        let campaigns = (0..).zip(totals).filter(|(_, total)| *total > 0).collect();
        RandomPages { mix: mix.clone(), per_page, campaigns }
    }

    /// The page that is asked for as number `number`.
    pub(crate) fn view(&self, number: u64) -> View {
        let chance = scattered(number);
        let (campaign, total) = self.campaigns[(chance % self.campaigns.len() as u64) as usize];
        let page = 1 + scattered(chance) % total.div_ceil(self.per_page).max(1);
        View { page, ..View::first(Timeline::Campaign(campaign), self.per_page) }
    }

    /// What is asked of a server for page `number`.
    pub(crate) fn path(&self, number: u64) -> String {
        self.view(number).path(&self.mix)
    }

    /// What is asked of a server for a page of one campaign.
    pub(crate) fn path_of(&self, campaign: u32, page: u64) -> String {
        View { page, ..View::first(Timeline::Campaign(campaign), self.per_page) }.path(&self.mix)
    }

    /// How many campaigns have events.
    pub(crate) fn campaigns(&self) -> usize {
        self.campaigns.len()
    }

    /// What is wrong with an answer, by its total and the number of its rows.
    pub(crate) fn fault(&self, view: &View, shown: &Shown) -> Option<String> {
        let Timeline::Campaign(campaign) = view.timeline else { return None };
        let at = self.campaigns.binary_search_by_key(&campaign, |(campaign, _)| *campaign);
        let total = at.map_or(0, |at| self.campaigns[at].1);
        let rows = total.saturating_sub((view.page - 1) * view.per_page).min(view.per_page);
        let (said, said_rows) = (shown.total, shown.ids.len() as u64);
        (said != total || said_rows != rows).then(|| {
            format!(
                "page {} of campaign {campaign} has {said_rows} rows of {said}, not {rows} of {total}",
                view.page
            )
        })
    }
}

/// What was read.
#[derive(Default)]
struct Read {
    took: BTreeMap<&'static str, Vec<Duration>>,
    /// Each with how often it was found.
    faults: BTreeMap<String, u64>,
}

impl Read {
    #[expect(clippy::print_stdout, reason = "what a person or a script wants to read")]
    fn print(&self, as_json: bool) {
        let spreads: BTreeMap<&str, Spread> = self
            .took
            .iter()
            .map(|(name, took)| (*name, Spread::of(took.iter().map(|took| took.as_secs_f64() * 1000.0))))
            .collect();
        if as_json {
            return println!("{}", json!({ "latency_ms": spreads, "errors": self.faults }));
        }
        println!(
            "| page | requests | p50 ms | p90 ms | p99 ms | max ms |\n| --- | ---: | ---: | ---: | ---: | ---: |"
        );
        for (name, Spread { count, median, p90, p99, max, .. }) in spreads {
            println!("| {name} | {count} | {median:.2} | {p90:.2} | {p99:.2} | {max:.2} |");
        }
        for (fault, count) in &self.faults {
            println!("WRONG, {count} times: {fault}");
        }
        if self.faults.is_empty() {
            println!("\nno errors; every total is exact");
        }
    }
}
