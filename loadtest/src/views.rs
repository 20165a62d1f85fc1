//! The pages that are measured: of a campaign the first, a middle and the last one, and what its filters leave of it; of a contact the
//! same. Each knows what it must show.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use indicatif::ProgressBar;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::client::Server;
use crate::mix::shown::{Shown, Timeline, View};
use crate::mix::{Kind, Mix};

/// A page that is measured.
#[derive(Clone)]
pub(crate) struct Viewed {
    pub(crate) name: &'static str,
    pub(crate) mix: Arc<Mix>,
    pub(crate) view: View,
    /// Views that show the same and are asked for in turn, where there are any: then none is asked for twice soon.
    pub(crate) others: Vec<View>,
    /// What it must show.
    pub(crate) want: Shown,
}

/// How long a page may take in all before it is asked for in one of so many rounds only.
const SLOW: Duration = Duration::from_secs(20);
const SLOW_ROUNDS: usize = 50;

/// The name of the view that others are compared with.
pub(crate) const FIRST: &str = "first";
/// The name of the view whose bounds are new each time.
pub(crate) const NEW_RANGE: &str = "middle of a new time range";
/// How many there are of it.
const NEW_RANGES: i64 = 500;
/// Events among whose times a bound has room to move.
const NEIGHBOURS: u64 = 64;

impl Viewed {
    fn new(name: &'static str, mix: &Arc<Mix>, view: View, share: f64) -> Viewed {
        let total = mix.shown(&View { per_page: 1, ..view.clone() }).total;
        let view = view.at_share(share, total);
        Viewed { name, mix: mix.clone(), want: mix.shown(&view), view, others: Vec::new() }
    }

    /// The views of a campaign. All are made before anything is measured: to make them, events are made again, many of them.
    pub(crate) fn of_campaign(mix: &Arc<Mix>, campaign: u32, per_page: u64) -> Vec<Viewed> {
        let all = View::first(Timeline::Campaign(campaign), per_page);
        // Between two events' times, so that either end is ragged.
        let one_of_five = |nth: u64| widest_gap(mix, mix.count() * nth / 5);
        let ((after_ms, from_ms), (to_ms, before_ms)) = (one_of_five(1), one_of_five(4));
        let contact = (mix.count() / 2..mix.count())
            .map(|number| mix.event(number))
            .find(|event| event.campaign == campaign)
            .map(|event| event.contact);
        let view = |name, view, share| Viewed::new(name, mix, view, share);
        let mut views = vec![
            view(FIRST, all.clone(), 0.0),
            view("middle", all.clone(), 0.5),
            view("last", all.clone(), 1.0),
            view("last of a rare type", View { kind: Some(Kind::RARE), ..all.clone() }, 1.0),
            view("one contact's", View { contact, ..all.clone() }, 0.0),
        ];
        if after_ms < from_ms && from_ms < to_ms && to_ms < before_ms {
            let range = view("middle of a time range", View { range_ms: Some((from_ms, to_ms)), ..all }, 0.5);
            let moved = |by: i64| {
                let range_ms = (from_ms - by % (from_ms - after_ms), to_ms + by % (before_ms - to_ms));
                View { range_ms: Some(range_ms), ..range.view.clone() }
            };
            let others = (0..NEW_RANGES).map(moved).collect();
            views.extend([range.clone(), Viewed { name: NEW_RANGE, others, ..range }]);
        }
        views
    }

    /// The views of a contact's timeline, and of one of its campaigns filtered by it.
    pub(crate) fn of_contact(mix: &Arc<Mix>, contact: u32, per_page: u64) -> Vec<Viewed> {
        let timeline = View::first(Timeline::Contact(contact), per_page);
        let filter = View { contact: Some(contact), ..View::first(Timeline::Campaign(0), per_page) };
        let view = |name, view: &View, share| Viewed::new(name, mix, view.clone(), share);
        vec![
            view("timeline: first", &timeline, 0.0),
            view("timeline: middle", &timeline, 0.5),
            view("timeline: last", &timeline, 1.0),
            view("campaign's contact filter: first", &filter, 0.0),
            view("campaign's contact filter: middle", &filter, 0.5),
            view("campaign's contact filter: last", &filter, 1.0),
        ]
    }
}

/// Of the events from `number` on the times of two neighbours that are farthest apart.
fn widest_gap(mix: &Mix, number: u64) -> (i64, i64) {
    let last = mix.count().saturating_sub(1);
    let gaps = (number..number + NEIGHBOURS)
        .map(|at| (mix.event(at.min(last)).at_ms, mix.event((at + 1).min(last)).at_ms));
    gaps.max_by_key(|(one, next)| next - one).unwrap_or_default()
}

/// Asks for each of the pages `rounds` times, in turn, over one connection, each round in another order, so that whatever else the
/// machine does falls on all alike. A page that is so slow that it has taken [`SLOW`] in all is then asked for less often. Returns the
/// milliseconds that each took, from the request to the last byte, and what was wrong.
///
/// # Errors
///
/// When a page isn't answered.
pub(crate) async fn measure(
    server: &Server,
    views: &[Viewed],
    warm_up_rounds: usize,
    rounds: usize,
    bar: &ProgressBar,
) -> anyhow::Result<(Vec<Vec<f64>>, BTreeSet<String>)> {
    let mut connection = server.connect().await?;
    let path = |viewed: &Viewed, view: &View| view.path(&viewed.mix);
    let paths: Vec<Vec<String>> = views
        .iter()
        .map(|viewed| match viewed.others.as_slice() {
            [] => vec![path(viewed, &viewed.view)],
            others => others.iter().map(|view| path(viewed, view)).collect(),
        })
        .collect();
    let mut took_ms = vec![Vec::with_capacity(rounds); views.len()];
    let mut wrong = BTreeSet::new();
    let mut chance = StdRng::seed_from_u64(1);
    let mut order: Vec<usize> = (0..views.len()).collect();
    let mut spent = vec![Duration::ZERO; views.len()];
    for round in 0..warm_up_rounds + rounds {
        order.shuffle(&mut chance);
        for &at in &order {
            if spent[at] > SLOW && round % SLOW_ROUNDS > 0 {
                continue;
            }
            let (viewed, path) = (&views[at], &paths[at][round % paths[at].len()]);
            let begun = Instant::now();
            let answer = connection.get(path).await?;
            let took = begun.elapsed();
            ensure!(answer.status.is_success(), "{path}: {}", answer.status);
            let shown = Shown::of_answer(&answer.body)?;
            if let Some(fault) = shown.fault(&viewed.want) {
                let (name, count) = (viewed.name, viewed.mix.count());
                wrong.insert(format!("{} of {count} events: {name} {fault}", viewed.mix.shape));
            }
            if round >= warm_up_rounds {
                took_ms[at].push(took.as_secs_f64() * 1000.0);
                spent[at] += took;
            }
        }
        bar.inc(1);
    }
    Ok((took_ms, wrong))
}
