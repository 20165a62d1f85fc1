//! Requests a second: random pages of random campaigns from `dev`, beside a bare web server that always answers the same bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use futures::future::try_join_all;
use serde::Serialize;
use serde_json::json;

use super::{ACCOUNT, PERMISSIONS, POSTING, Setting};
use crate::client::Server;
use crate::dev::Dev;
use crate::intake::take_in;
use crate::measure::{Meter, Spread};
use crate::mix::{Mix, Shape};
use crate::options::now_ms;
use crate::peers::bare_http::BareHttp;
use crate::progress;
use crate::read::RandomPages;
use crate::report::goals::Goal;
use crate::report::plot::Plot;
use crate::report::{Outcome, Table, megabytes, show, thousands};

const PER_PAGE: u64 = 10;
/// As many as keep both servers busy.
const CONNECTIONS: u64 = 32;
/// Pages that are asked for, one after the other; then again.
const PAGES: u64 = 100_000;
/// Pages whose answers are compared with what they must show, apart from what is timed.
const CHECKED: u64 = 2000;

/// How one round went.
#[derive(Serialize)]
struct Round {
    per_s: f64,
    cpu_us: f64,
    memory_peak_bytes: u64,
}

pub(super) async fn requests(setting: &Setting) -> anyhow::Result<Outcome> {
    let events = setting.pick(1_000_000, 20_000);
    let (rounds, round) = setting.pick((9, Duration::from_secs(4)), (3, Duration::from_secs(1)));
    let mix = Arc::new(Mix::new(Shape::Mixed, "cmp", events, now_ms()?, setting.seed));
    let dev = Dev::start(&setting.program).await?;
    let key = dev.create_key(ACCOUNT, &PERMISSIONS).await?;
    let server = Server::new(&dev.url, Some(&key))?;
    let bar = progress::events("requests: taking in", mix.arrivals());
    take_in(&server, &Server::new(&dev.ops_url, None)?, &mix, POSTING, &bar).await?;
    bar.finish_and_clear();

    let pages = RandomPages::new(&mix, PER_PAGE);
    let mut connection = server.connect().await?;
    let mut wrong = Vec::new();
    let checked = setting.pick(CHECKED, CHECKED / 10);
    for number in 0..checked {
        let view = pages.view(number);
        let shown = connection.view(&mix, &view).await?;
        wrong.extend(pages.fault(&view, &shown));
    }
    // A full page of the largest campaign: what most requests, weighed by rows, get.
    let sample = connection.get(&pages.path_of(0, 2)).await?;
    let of_connection = ["date", "content-length", "transfer-encoding", "connection"];
    let headers: Vec<(&str, &str)> = sample
        .headers
        .iter()
        .filter(|(name, _)| !of_connection.contains(&name.as_str()))
        .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
        .collect();
    let bare = BareHttp::start(&headers, &sample.body).await?;
    let bare_server = Server::new(&bare.url, Some(&key))?;

    let paths: Arc<Vec<String>> = Arc::new((0..PAGES).map(|number| pages.path(number)).collect());
    let bar = progress::rounds("requests", rounds);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // The first round warms up.
    for number in 0..=rounds {
        let one = ask(&server, dev.pid()?, &paths, round).await?;
        let other = ask(&bare_server, bare.pid(), &paths, round).await?;
        if number > 0 {
            ours.push(one);
            theirs.push(other);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    dev.stop().await?;

    let mut outcome = Outcome {
        about: format!(
            "{CONNECTIONS} connections ask, each as soon as it has an answer, for random pages of {PER_PAGE} rows of random campaigns \
             among {}, of a `dev` that holds {} events; then a bare axum server for the same paths, which always answers the same {} \
             bytes, in turn. No answer is kept by either. {checked} answers are checked, apart from what is timed. The load runs on the \
             same cores.",
            thousands(pages.campaigns() as f64),
            thousands(mix.count() as f64),
            sample.body.len()
        ),
        wrong,
        raw: json!({ "dev": ours, "bare": theirs, "answer_bytes": sample.body.len() }),
        ..Outcome::default()
    };
    let mut table = Table::new(
        "Requests a second",
        1,
        &["server", "median", "p10 to p90", "CPU µs a request", "memory MB", "× bare axum"],
    );
    let spread = |rounds: &[Round], of: fn(&Round) -> f64| Spread::of(rounds.iter().map(of));
    let bare_per_s = spread(&theirs, |round| round.per_s).median;
    let mut bars = Vec::new();
    for (name, rounds) in [("backstamp dev", &ours), ("bare axum", &theirs)] {
        let per_s = spread(rounds, |round| round.per_s);
        table.row([
            name.to_owned(),
            thousands(per_s.median),
            format!("{} to {}", thousands(per_s.p10), thousands(per_s.p90)),
            show(spread(rounds, |round| round.cpu_us).median),
            megabytes(rounds.iter().map(|round| round.memory_peak_bytes).max().unwrap_or(0)),
            show(per_s.median / bare_per_s),
        ]);
        bars.push((name.to_owned(), per_s.median));
    }
    outcome.measured(Goal::Requests, bars[0].1 / bare_per_s, "");
    outcome.tables.push(table);
    outcome.plots.push(Plot::bars("rates", "Pages of 10 rows", "requests a second", bars));
    Ok(outcome)
}

/// Asks for pages for as long as `round`.
async fn ask(server: &Server, pid: u32, paths: &Arc<Vec<String>>, round: Duration) -> anyhow::Result<Round> {
    let next = Arc::new(AtomicU64::new(0));
    let meter = Meter::start("", pid)?;
    let begun = Instant::now();
    let askers = (0..CONNECTIONS).map(|_| {
        let (server, paths, next) = (server.clone(), paths.clone(), next.clone());
        let asker = async move {
            let mut connection = server.connect().await?;
            while begun.elapsed() < round {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let path = &paths[(number % PAGES) as usize];
                let answer = connection.get(path).await?;
                ensure!(answer.status.is_success(), "{path}: {}", answer.status);
            }
            anyhow::Ok(())
        };
        async { tokio::spawn(asker).await? }
    });
    try_join_all(askers).await?;
    let (seconds, usage) = (begun.elapsed().as_secs_f64(), meter.read()?);
    let asked = next.load(Ordering::Relaxed);
    Ok(Round {
        per_s: asked as f64 / seconds,
        cpu_us: usage.cpu_us_per(asked),
        memory_peak_bytes: usage.memory_peak_bytes,
    })
}
