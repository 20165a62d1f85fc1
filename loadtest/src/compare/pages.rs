//! Any page at any size: what the pages and filters of campaigns of ten thousand to ten million events cost beside the first page of
//! the smallest; and those of a million events of one second, and of a contact of a million.

mod cassandra;
mod embedded;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;

use super::Setting;
use crate::client::Server;
use crate::intake::TakenIn;
use crate::measure::{Spread, Usage};
use crate::mix::{Mix, Shape};
use crate::options::now_ms;
use crate::progress;
use crate::report::goals::Goal;
use crate::report::plot::{Plot, Series};
use crate::report::{Outcome, Table, megabytes, show, thousands};
use crate::views::{self, FIRST, NEW_RANGE, Viewed};

pub(super) use cassandra::cassandra;
pub(super) use embedded::embedded;

const PER_PAGE: u64 = 50;

/// Everything that is held while pages are measured.
struct Loads {
    /// Single campaigns, the smallest first.
    sizes: Vec<Arc<Mix>>,
    same_second: Arc<Mix>,
    contact: Arc<Mix>,
}

impl Loads {
    fn new(setting: &Setting, sizes: &[u64], special: u64, account: Option<&str>) -> anyhow::Result<Loads> {
        let now_ms = now_ms()?;
        let mix = |shape, name: &str, count| {
            let mut mix = Mix::new(shape, name, count, now_ms, setting.seed);
            mix.account = account.map(str::to_owned);
            Arc::new(mix)
        };
        Ok(Loads {
            sizes: sizes
                .iter()
                .filter(|count| **count <= setting.largest)
                .map(|count| mix(Shape::Giant, &format!("cmp_giant_{count}"), *count))
                .collect(),
            same_second: mix(Shape::SameSecond, "cmp_second", special),
            contact: mix(Shape::Contact, "cmp_mailbox", special),
        })
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Mix>> {
        self.sizes.iter().chain([&self.same_second, &self.contact])
    }

    /// The pages that are measured. What is compared with, the first page of the smallest campaign, is the first of them, and once more
    /// the last: how far the two are apart is how far the ratios can be believed.
    async fn views(&self) -> anyhow::Result<Vec<Viewed>> {
        let (sizes, second, contact) = (self.sizes.clone(), self.same_second.clone(), self.contact.clone());
        let views = tokio::task::spawn_blocking(move || {
            let mut views: Vec<Viewed> =
                sizes.iter().flat_map(|mix| Viewed::of_campaign(mix, 0, PER_PAGE)).collect();
            views.extend(Viewed::of_campaign(&second, 0, PER_PAGE));
            views.extend(Viewed::of_contact(&contact, 0, PER_PAGE));
            views.push(Viewed { name: AGAIN, ..views[0].clone() });
            views
        });
        Ok(views.await?)
    }
}

const AGAIN: &str = "first, again";

/// A load, and what it took to take it in.
#[derive(Serialize)]
struct Loaded {
    what: String,
    taken_in: TakenIn,
    /// The process that did it comes first.
    usage: Vec<Usage>,
}

/// What a load is called in the tables.
fn title(mix: &Mix) -> String {
    match mix.shape {
        Shape::SameSecond => format!("{} of one second", thousands(mix.count() as f64)),
        Shape::Contact => format!("{} of one contact", thousands(mix.count() as f64)),
        _ => thousands(mix.count() as f64),
    }
}

/// What a page costs.
#[derive(Serialize)]
struct Cost {
    load: String,
    shape: Shape,
    count: u64,
    page: &'static str,
    number: u64,
    total: u64,
    rows: usize,
    ms: Spread,
    /// Beside the first page of the smallest campaign.
    median_ratio: f64,
    p99_ratio: f64,
}

/// The goals that pages on one store have.
struct PageGoals {
    median: Goal,
    p99: Goal,
    same_second: Goal,
    contact: Goal,
}

/// Measures all pages, in turn.
async fn measure(
    setting: &Setting,
    server: &Server,
    loads: &Loads,
) -> anyhow::Result<(Vec<Cost>, BTreeSet<String>)> {
    let views = loads.views().await?;
    let (warm_up, rounds) = setting.pick((50, 1000), (10, 60));
    let bar = progress::rounds("reading", (warm_up + rounds) as u64);
    let (took_ms, wrong) = views::measure(server, &views, warm_up, rounds, &bar).await?;
    bar.finish_and_clear();
    let spreads: Vec<Spread> = took_ms.into_iter().map(Spread::of).collect();
    let base = spreads[0];
    let costs = views.iter().zip(spreads).map(|(viewed, ms)| Cost {
        load: title(&viewed.mix),
        shape: viewed.mix.shape,
        count: viewed.mix.count(),
        page: viewed.name,
        number: viewed.view.page,
        total: viewed.want.total,
        rows: viewed.want.ids.len(),
        ms,
        median_ratio: ms.median / base.median,
        p99_ratio: ms.p99 / base.p99,
    });
    Ok((costs.collect(), wrong))
}

/// Puts what was measured into tables, a plot and goals.
fn tell(costs: &[Cost], goals: &PageGoals, outcome: &mut Outcome) {
    let mut table = Table::new(
        &format!(
            "Pages of {PER_PAGE}, by one connection; the ratios are to the first page at {}",
            costs[0].load
        ),
        2,
        &[
            "events",
            "page",
            "number",
            "rows",
            "total",
            "requests",
            "p50 ms",
            "p10 to p90 ms",
            "p99 ms",
            "p50 ×",
            "p99 ×",
        ],
    );
    for cost in costs {
        let Spread { count, median, p10, p90, p99, .. } = cost.ms;
        table.row([
            cost.load.clone(),
            cost.page.to_owned(),
            thousands(cost.number as f64),
            cost.rows.to_string(),
            thousands(cost.total as f64),
            count.to_string(),
            show(median),
            format!("{} to {}", show(p10), show(p90)),
            show(p99),
            show(cost.median_ratio),
            show(cost.p99_ratio),
        ]);
    }
    outcome.tables.push(table);

    let sizes: Vec<&Cost> =
        costs.iter().filter(|cost| cost.shape == Shape::Giant && cost.page != AGAIN).collect();
    let pages: Vec<&str> =
        sizes.iter().filter(|cost| cost.count == sizes[0].count).map(|cost| cost.page).collect();
    for (name, title, of) in [
        ("p50", "Median of a page by size", (|cost: &Cost| cost.ms.median) as fn(&Cost) -> f64),
        ("p99", "99 % of a page by size", |cost| cost.ms.p99),
    ] {
        let series = pages.iter().map(|page| Series {
            name: (*page).to_owned(),
            points: sizes
                .iter()
                .filter(|cost| cost.page == *page)
                .map(|cost| (cost.count as f64, of(cost)))
                .collect(),
        });
        outcome.plots.push(Plot::lines(name, title, "events in the campaign", "ms", series.collect()));
    }

    let mut worst = |goal, shape, ratio: fn(&Cost) -> f64| {
        // The first page of the smallest is what is compared with.
        let others = costs.iter().skip(1).filter(|cost| cost.page != AGAIN);
        let of_shape: Vec<&Cost> = others.filter(|cost| cost.shape == shape).collect();
        let worst_of = |is_new: bool| {
            let costs = of_shape.iter().filter(|cost| (cost.page == NEW_RANGE) == is_new);
            costs.max_by(|one, other| ratio(one).total_cmp(&ratio(other)))
        };
        let Some(cost) = worst_of(false) else { return };
        let mut which = format!("{} at {}", cost.page, cost.load);
        if let Some(new) = worst_of(true) {
            which += &format!("; {}: {} ×", new.page, show(ratio(new)));
        }
        outcome.measured(goal, ratio(cost), which);
    };
    worst(goals.median, Shape::Giant, |cost| cost.median_ratio);
    worst(goals.p99, Shape::Giant, |cost| cost.p99_ratio);
    worst(goals.same_second, Shape::SameSecond, |cost| cost.median_ratio);
    worst(goals.contact, Shape::Contact, |cost| cost.median_ratio);
}

/// A table of what taking in took.
fn taking_in(loaded: &[Loaded]) -> Table {
    let mut table = Table::new(
        "Taking in, flat out, one load after the other",
        1,
        &["distinct events", "sent", "seconds", "events a second", "CPU µs an event", "memory MB"],
    );
    for Loaded { what, taken_in, usage } in loaded {
        let shown = |of: fn(&Usage, u64) -> String| {
            usage.iter().map(|usage| of(usage, taken_in.events)).collect::<Vec<_>>().join(" + ")
        };
        table.row([
            what.clone(),
            thousands(taken_in.events as f64),
            show(taken_in.shown_s),
            thousands(taken_in.shown_per_s()),
            shown(|usage, events| show(usage.cpu_us_per(events))),
            shown(|usage, _| megabytes(usage.memory_peak_bytes)),
        ]);
    }
    table
}

/// All figures.
fn raw(loaded: &[Loaded], costs: &[Cost]) -> serde_json::Value {
    json!({ "loaded": loaded, "pages": costs, "compared_with": FIRST })
}

/// How many bytes the distinct events of all loads are as JSON.
async fn json_bytes(loads: &Loads) -> anyhow::Result<u64> {
    let mixes: Vec<Arc<Mix>> = loads.all().cloned().collect();
    let counted = tokio::task::spawn_blocking(move || mixes.iter().map(|mix| mix.json_bytes()).sum::<u64>());
    Ok(counted.await?)
}
