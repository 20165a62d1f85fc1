//! Events into Backstamp over HTTP, and the wait until they show.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use futures::future::try_join_all;
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use crate::client::Server;
use crate::mix::Mix;
use crate::mix::json::Writer;
use crate::mix::shown::{Timeline, View};
use crate::schedule::Schedule;

/// How often it is looked whether all is done.
const POLL: Duration = Duration::from_millis(50);
/// For how long nothing may be done before it is called lost.
const STILL_MAX: Duration = Duration::from_secs(60);
/// About how long an event is.
const EVENT_BYTES: usize = 400;

/// How events are posted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Posting {
    /// Events in one request.
    pub(crate) batch: u64,
    /// Requests under way at once.
    pub(crate) connections: usize,
    /// Events a second; as many as go, where there is none.
    pub(crate) per_s: Option<f64>,
}

/// How events were taken in.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct TakenIn {
    /// How many, repeats included.
    pub(crate) events: u64,
    /// Bytes of JSON that they were.
    pub(crate) bytes: u64,
    /// Until all were accepted.
    pub(crate) posted_s: f64,
    /// Until all showed.
    pub(crate) shown_s: f64,
}

impl TakenIn {
    /// Events a second, until they show.
    pub(crate) fn shown_per_s(&self) -> f64 {
        self.events as f64 / self.shown_s
    }
}

/// Posts all of a mix; returns how many bytes that were.
pub(crate) async fn post(
    server: &Server,
    mix: &Arc<Mix>,
    posting: Posting,
    bar: &ProgressBar,
) -> anyhow::Result<u64> {
    let arrivals = mix.arrivals();
    let per_s = posting.per_s.map(|per_s| per_s / posting.batch as f64);
    let schedule = Arc::new(Schedule::start(per_s, arrivals.div_ceil(posting.batch)));
    let workers = (0..posting.connections).map(|_| {
        let (server, mix, schedule, bar) = (server.clone(), mix.clone(), schedule.clone(), bar.clone());
        let worker = async move {
            let mut connection = server.connect().await?;
            let mut bytes = 0;
            while let Some(due) = schedule.next().await {
                let first = due.number * posting.batch;
                let end = (first + posting.batch).min(arrivals);
                let body = body(&mix, first, end);
                bytes += body.len() as u64;
                connection.post_events(end - first, body).await?;
                bar.inc(end - first);
            }
            anyhow::Ok(bytes)
        };
        async { tokio::spawn(worker).await? }
    });
    Ok(try_join_all(workers).await?.into_iter().sum())
}

/// The events from arrival `first` to before `end`, NDJSON.
fn body(mix: &Mix, first: u64, end: u64) -> Vec<u8> {
    let mut writer = Writer::new(mix);
    let mut body = Vec::with_capacity((end - first) as usize * EVENT_BYTES);
    for arrival in first..end {
        writer.write(&mix.arrival(arrival), &mut body);
        body.push(b'\n');
    }
    body
}

/// Posts all of a mix to a `dev` and waits until all is done: until its metrics at `ops` say so, and the total of the
/// first campaign is no longer zero. Whether all shows as it must is judged by those who come next.
pub(crate) async fn take_in(
    server: &Server,
    ops: &Server,
    mix: &Arc<Mix>,
    posting: Posting,
    bar: &ProgressBar,
) -> anyhow::Result<TakenIn> {
    let before = ops.events_done().await?;
    let begun = Instant::now();
    let bytes = post(server, mix, posting, bar).await?;
    let posted_s = begun.elapsed().as_secs_f64();
    bar.set_message(format!("{}: until it shows", bar.message()));
    await_done(ops, before + mix.arrivals(), |done| {
        bar.set_position(done.saturating_sub(before));
    })
    .await?;
    let shown_s = begun.elapsed().as_secs_f64();
    let mut connection = server.connect().await?;
    let first = connection.view(mix, &View::first(Timeline::Campaign(0), 1)).await?;
    ensure!(first.total > 0, "all is done, and nothing shows");
    Ok(TakenIn { events: mix.arrivals(), bytes, posted_s, shown_s })
}

/// Waits until the metrics at `ops` say that `wanted` events are done.
pub(crate) async fn await_done(ops: &Server, wanted: u64, progress: impl Fn(u64)) -> anyhow::Result<()> {
    let (mut seen, mut moved) = (0, Instant::now());
    loop {
        let done = ops.events_done().await?;
        progress(done);
        if done >= wanted {
            return Ok(());
        }
        if done != seen {
            (seen, moved) = (done, Instant::now());
        }
        ensure!(moved.elapsed() < STILL_MAX, "{done} of {wanted} events are done, and no more for a minute");
        tokio::time::sleep(POLL).await;
    }
}
