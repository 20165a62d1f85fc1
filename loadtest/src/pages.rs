//! `loadtest pages`: a campaign of a million events over the HTTP intake. Is its total exact, is every page right, and what
//! does the last page cost beside the first?
//!
//! What must show is known ([`Mix`]), so every answer that is timed is also compared: its total, and the ids on it. The pages are
//! asked for in turn over one connection, each round beginning at another one, so that whatever else the machine does falls on all alike;
//! the first page is asked for twice a round, and how far the two are apart is how far the ratios can be believed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use clap::Args;
use futures::stream::{self, TryStreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Client, StatusCode, Url};
use serde_json::{Value, json};

use crate::dev::{Dev, program_beside_us};
use crate::mix::{Kind, Mix};

const ACCOUNT: &str = "loadtest";
/// Rounds before those that count.
const WARM_UP_ROUNDS: usize = 20;
/// How often the total is looked at while it grows.
const POLL: Duration = Duration::from_millis(200);
/// For how long the total may stand still before it is called wrong.
const STILL_MAX: Duration = Duration::from_secs(60);
/// How often a batch is sent again that was turned away for now.
const TRIES_MAX: usize = 100;
const TIMEOUT: Duration = Duration::from_secs(60);
/// The type that is looked for in all of the campaign.
const RARE: Kind = Kind::Complained;

/// Takes a large campaign in, checks that its total is exact, and measures its first, middle and last pages.
#[derive(Args)]
pub(crate) struct Options {
    /// Distinct events; some 2 % are sent twice beside that.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=50_000_000))]
    events: u32,
    /// Events in one request.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    batch: u16,
    /// Requests of the intake that are under way at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    posting: u16,
    /// How often each page is measured.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// What chance begins with.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The program to start; by default the `backstamp` beside this one.
    #[arg(long, conflicts_with = "url")]
    program: Option<PathBuf>,
    /// A `dev` that runs already, on this machine, in place of one of our own.
    #[arg(long, requires = "key")]
    url: Option<Url>,
    /// Its key, with `campaigns:read` and `events:write`.
    #[arg(long, env = "LOADTEST_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Prints JSON in place of a table.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let now_ms = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    // A campaign of its own, so that one server can be measured again.
    let campaign = format!("cmp_{now_ms}");
    let (count, seed) = (usize::try_from(options.events)?, options.seed);
    let mix = tokio::task::spawn_blocking({
        let campaign = campaign.clone();
        move || Mix::new(&campaign, count, now_ms, seed)
    });
    let mix = mix.await?;

    let (dev, url, key) = match (&options.url, &options.key) {
        (Some(url), Some(key)) => {
            ensure!(is_loopback(url), "{url} is not on this machine: only loopback addresses are asked");
            (None, url.as_str().trim_end_matches('/').to_owned(), key.clone())
        }
        _ => {
            let program = options.program.clone().map_or_else(program_beside_us, Ok)?;
            let dev = Dev::start(&program).await?;
            let key = dev.create_key(ACCOUNT, &["campaigns:read", "events:write"]).await?;
            let url = dev.url.clone();
            (Some(dev), url, key)
        }
    };
    let server = Server::new(&url, key, &campaign)?;
    let ops_url = dev.as_ref().map(|dev| dev.ops_url.clone());

    let taken_in = take_in(&server, ops_url.as_deref(), &mix, &options).await?;
    let memory_taken_in = dev.as_ref().and_then(Dev::memory_peak_bytes);
    let mut wrong = check_totals(&server, &mix).await?;
    let measured = measure(&server, &mix, usize::try_from(options.rounds)?, &mut wrong).await?;
    let report = Report {
        mix: &mix,
        taken_in,
        measured,
        memory_taken_in,
        memory_peak: dev.as_ref().and_then(Dev::memory_peak_bytes),
        disk: dev.as_ref().map(Dev::disk_bytes),
        wrong,
    };
    if let Some(dev) = dev {
        dev.stop().await?;
    }
    report.print(options.json);
    Ok(if report.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    host == "localhost" || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// The server, over one connection for reads and some for the intake.
struct Server {
    reading: Client,
    posting: Client,
    url: String,
    key: String,
    campaign: String,
}

/// An answer of the campaign's stream.
struct Answer {
    total: u64,
    ids: Vec<String>,
    seconds: f64,
}

impl Server {
    fn new(url: &str, key: String, campaign: &str) -> anyhow::Result<Server> {
        let client = || Client::builder().no_proxy().timeout(TIMEOUT).tcp_nodelay(true);
        Ok(Server {
            reading: client().pool_max_idle_per_host(1).build()?,
            posting: client().build()?,
            url: url.to_owned(),
            key,
            campaign: campaign.to_owned(),
        })
    }

    /// One page. Timed is the request until the last byte of the answer; reading the JSON is not.
    async fn page(&self, view: &View) -> anyhow::Result<Answer> {
        let mut url = format!(
            "{}/v1/campaigns/{}/events?per_page={}&page={}",
            self.url, self.campaign, view.per_page, view.page
        );
        if let Some(kind) = view.kind {
            url = format!("{url}&type={}", kind.shown());
        }
        let request = self.reading.get(&url).bearer_auth(&self.key).build()?;
        let begun = Instant::now();
        let response = self.reading.execute(request).await?;
        let status = response.status();
        let body = response.bytes().await?;
        let seconds = begun.elapsed().as_secs_f64();
        // It exists once its first event was taken in.
        if status == StatusCode::NOT_FOUND {
            return Ok(Answer { total: 0, ids: Vec::new(), seconds });
        }
        ensure!(status.is_success(), "{url}: {status} {}", String::from_utf8_lossy(&body));
        let answer: Value = serde_json::from_slice(&body)?;
        let events = answer["data"]["events"].as_array().context("no events in the answer")?;
        Ok(Answer {
            total: answer["meta"]["total"].as_u64().context("no total in the answer")?,
            ids: events.iter().filter_map(|event| event["id"].as_str().map(str::to_owned)).collect(),
            seconds,
        })
    }

    async fn total(&self, kind: Option<Kind>) -> anyhow::Result<u64> {
        Ok(self.page(&View { name: String::new(), kind, per_page: 1, page: 1 }).await?.total)
    }

    /// Posts a batch; again, where the server has no room for it now.
    async fn post(&self, count: usize, body: String) -> anyhow::Result<()> {
        for _ in 0..TRIES_MAX {
            let request = self.posting.post(format!("{}/v1/events", self.url)).bearer_auth(&self.key);
            let request = request.header("content-type", "application/x-ndjson").body(body.clone());
            let response = request.send().await?;
            let status = response.status();
            if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
                let after =
                    response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
                tokio::time::sleep(Duration::from_secs(after.unwrap_or(1))).await;
                continue;
            }
            let answer: Value = response.json().await?;
            ensure!(
                status == StatusCode::ACCEPTED && answer["accepted"].as_u64() == Some(count as u64),
                "a batch of {count} was answered {status} {answer}"
            );
            return Ok(());
        }
        bail!("the intake had no room {TRIES_MAX} times");
    }

    /// How many events a server's metrics say are done, whatever became of them.
    async fn done(&self, ops_url: &str) -> anyhow::Result<u64> {
        let text = self.posting.get(format!("{ops_url}/metrics")).send().await?.text().await?;
        let outcomes = text.lines().filter(|line| line.starts_with("backstamp_events_total{"));
        Ok(outcomes.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum())
    }
}

/// How the events were taken in.
struct TakenIn {
    posted_s: f64,
    shown_s: f64,
}

/// Posts everything and waits until it shows: until every event is done, where the server's metrics tell, else until the
/// total is reached. Repeats that come after that would still be caught, because every page that is measured has its total compared.
async fn take_in(
    server: &Server,
    ops_url: Option<&str>,
    mix: &Mix,
    options: &Options,
) -> anyhow::Result<TakenIn> {
    let bar = ProgressBar::new(mix.sent_count() as u64);
    bar.set_style(ProgressStyle::with_template(
        "{msg:>8}  {bar:40}  {human_pos} of {human_len}  {per_sec}  {eta}",
    )?);
    bar.set_message("posting");
    let begun = Instant::now();
    stream::iter(mix.batches(usize::from(options.batch)).map(anyhow::Ok))
        .try_for_each_concurrent(usize::from(options.posting), async |(count, body)| {
            server.post(count, body).await?;
            bar.inc(count as u64);
            Ok(())
        })
        .await?;
    let posted_s = begun.elapsed().as_secs_f64();

    bar.set_message("showing");
    bar.set_length(mix.count() as u64);
    bar.reset();
    let (mut seen, mut moved) = ((0, 0), Instant::now());
    loop {
        let done = match ops_url {
            Some(ops_url) => server.done(ops_url).await?,
            None => mix.sent_count() as u64,
        };
        let total = server.total(None).await?;
        bar.set_position(total);
        if done >= mix.sent_count() as u64 && total >= mix.count() as u64 {
            break;
        }
        if seen != (done, total) {
            (seen, moved) = ((done, total), Instant::now());
        }
        // Whether that is right is judged by those who come next.
        if moved.elapsed() > STILL_MAX {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    bar.finish_and_clear();
    Ok(TakenIn { posted_s, shown_s: begun.elapsed().as_secs_f64() })
}

/// Compares the total, and the total of each type.
async fn check_totals(server: &Server, mix: &Mix) -> anyhow::Result<BTreeSet<String>> {
    let mut wrong = BTreeSet::new();
    let total = server.total(None).await?;
    if total != mix.count() as u64 {
        wrong.insert(format!("the total is {total}, not {}", mix.count()));
    }
    for kind in Kind::ALL {
        let (total, want) = (server.total(Some(kind)).await?, mix.count_of(kind) as u64);
        if total != want {
            wrong.insert(format!("the total of {} is {total}, not {want}", kind.shown()));
        }
    }
    Ok(wrong)
}

/// A page that is measured.
struct View {
    name: String,
    kind: Option<Kind>,
    per_page: usize,
    page: usize,
}

/// A page and how long it took, sorted.
struct Measured {
    view: View,
    rows: usize,
    seconds: Vec<f64>,
}

fn views(mix: &Mix) -> Vec<View> {
    let mut views = Vec::new();
    for per_page in [100, 50] {
        let last = mix.count().div_ceil(per_page).max(1);
        for (name, page) in [("first", 1), ("first, again", 1), ("middle", last.div_ceil(2)), ("last", last)]
        {
            views.push(View { name: name.to_owned(), kind: None, per_page, page });
        }
    }
    let last = mix.count_of(RARE).div_ceil(100).max(1);
    views.push(View {
        name: format!("last of {}", RARE.shown()),
        kind: Some(RARE),
        per_page: 100,
        page: last,
    });
    views
}

async fn measure(
    server: &Server,
    mix: &Mix,
    rounds: usize,
    wrong: &mut BTreeSet<String>,
) -> anyhow::Result<Vec<Measured>> {
    let mut measured: Vec<Measured> =
        views(mix).into_iter().map(|view| Measured { view, rows: 0, seconds: Vec::new() }).collect();
    let want: Vec<(u64, Vec<String>)> = measured
        .iter()
        .map(|Measured { view, .. }| {
            let total = view.kind.map_or(mix.count(), |kind| mix.count_of(kind));
            (total as u64, mix.page(view.kind, view.per_page, view.page))
        })
        .collect();
    let bar = ProgressBar::new((WARM_UP_ROUNDS + rounds) as u64);
    bar.set_style(ProgressStyle::with_template("reading   {bar:40}  round {pos} of {len}  {eta}")?);
    for round in 0..WARM_UP_ROUNDS + rounds {
        for turn in 0..measured.len() {
            let at = (round + turn) % measured.len();
            let Measured { view, rows, seconds } = &mut measured[at];
            let answer = server.page(view).await?;
            let (total, ids) = &want[at];
            if answer.total != *total {
                wrong.insert(format!("{} says {} in total, not {total}", view.title(), answer.total));
            }
            if answer.ids != *ids {
                wrong.insert(format!("{} shows other events than it must", view.title()));
            }
            *rows = answer.ids.len();
            if round >= WARM_UP_ROUNDS {
                seconds.push(answer.seconds);
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    for Measured { seconds, .. } in &mut measured {
        seconds.sort_by(f64::total_cmp);
    }
    Ok(measured)
}

impl View {
    fn title(&self) -> String {
        format!("{} (page {} of {})", self.name, self.page, self.per_page)
    }
}

impl Measured {
    /// The time that `share` of the requests stayed within, in milliseconds.
    fn quantile_ms(&self, share: f64) -> f64 {
        quantile(&self.seconds, share) * 1000.0
    }

    /// What it costs beside the first page of the same length.
    fn ratio(&self, all: &[Measured]) -> f64 {
        let first = all.iter().find(|one| one.view.per_page == self.view.per_page);
        first.map_or(f64::NAN, |first| self.quantile_ms(0.5) / first.quantile_ms(0.5))
    }
}

/// The value below which `share` of `sorted` lie.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// What came of it all.
struct Report<'a> {
    mix: &'a Mix,
    taken_in: TakenIn,
    measured: Vec<Measured>,
    memory_taken_in: Option<u64>,
    memory_peak: Option<u64>,
    disk: Option<u64>,
    wrong: BTreeSet<String>,
}

impl Report<'_> {
    #[expect(clippy::print_stdout, reason = "what a person or a script wants to read")]
    fn print(&self, json: bool) {
        println!("{}", if json { self.json().to_string() } else { self.table() });
    }

    fn shown_per_s(&self) -> f64 {
        self.mix.sent_count() as f64 / self.taken_in.shown_s
    }

    fn json(&self) -> Value {
        let pages = self.measured.iter().map(|measured| {
            json!({
                "page": measured.view.name,
                "type": measured.view.kind.map(Kind::shown),
                "number": measured.view.page,
                "per_page": measured.view.per_page,
                "rows": measured.rows,
                "requests": measured.seconds.len(),
                "median_ms": measured.quantile_ms(0.5),
                "p10_ms": measured.quantile_ms(0.1),
                "p90_ms": measured.quantile_ms(0.9),
                "p99_ms": measured.quantile_ms(0.99),
                "ratio_to_first": measured.ratio(&self.measured),
            })
        });
        json!({
            "events": self.mix.count(),
            "events_sent": self.mix.sent_count(),
            "exact": self.wrong.is_empty(),
            "wrong": self.wrong,
            "posted_s": self.taken_in.posted_s,
            "shown_s": self.taken_in.shown_s,
            "shown_events_per_s": self.shown_per_s(),
            "memory_taken_in_bytes": self.memory_taken_in,
            "memory_peak_bytes": self.memory_peak,
            "disk_bytes": self.disk,
            "pages": pages.collect::<Vec<_>>(),
        })
    }

    fn table(&self) -> String {
        let (count, sent) = (self.mix.count(), self.mix.sent_count());
        let TakenIn { posted_s, shown_s } = self.taken_in;
        let mib = |bytes: Option<u64>| {
            bytes.map_or("unknown".to_owned(), |bytes| format!("{:.0} MiB", bytes as f64 / 1_048_576.0))
        };
        let mut lines = vec![
            format!(
                "{count} events of one campaign, {} of them sharing a millisecond; {sent} sent, {} of them repeats",
                self.mix.sharing_a_millisecond(),
                sent - count
            ),
            format!(
                "posted in {posted_s:.1} s, all shown after {shown_s:.1} s: {:.0} events a second",
                self.shown_per_s()
            ),
            format!(
                "memory at most {} while taking in, {} at the end; {} on disk",
                mib(self.memory_taken_in),
                mib(self.memory_peak),
                mib(self.disk)
            ),
            String::new(),
            "| page | number | per_page | rows | median ms | p10 to p90 ms | p99 ms | beside the first |"
                .to_owned(),
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |".to_owned(),
        ];
        lines.extend(self.measured.iter().map(|measured| {
            format!(
                "| {} | {} | {} | {} | {:.2} | {:.2} to {:.2} | {:.2} | {:.2} |",
                measured.view.name,
                measured.view.page,
                measured.view.per_page,
                measured.rows,
                measured.quantile_ms(0.5),
                measured.quantile_ms(0.1),
                measured.quantile_ms(0.9),
                measured.quantile_ms(0.99),
                measured.ratio(&self.measured)
            )
        }));
        lines.push(String::new());
        if self.wrong.is_empty() {
            lines.push(
                "every total is exact, under each type too, and every page shows what it must".to_owned(),
            );
        } else {
            lines.extend(self.wrong.iter().map(|wrong| format!("WRONG: {wrong}")));
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_value_that_was_measured() {
        let sorted: Vec<f64> = (1..=100).map(f64::from).collect();
        assert!((quantile(&sorted, 0.5) - 50.0).abs() < f64::EPSILON);
        assert!((quantile(&sorted, 0.99) - 99.0).abs() < f64::EPSILON);
        assert!((quantile(&[7.0], 0.1) - 7.0).abs() < f64::EPSILON);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn only_this_machine_is_asked() {
        let is = |url| is_loopback(&Url::parse(url).expect("a url"));
        assert!(is("http://127.0.0.1:8080") && is("http://localhost:1") && is("http://[::1]:8080"));
        assert!(!is("http://10.0.0.1:8080") && !is("https://api.example"));
    }
}
