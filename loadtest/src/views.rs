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
    /// What it must show.
    pub(crate) want: Shown,
    /// Others like it, asked for in turn with it.
    pub(crate) others: Vec<(View, Shown)>,
}

/// How long a page may take in all before it is asked for in one of so many rounds only.
const SLOW: Duration = Duration::from_secs(20);
const SLOW_ROUNDS: usize = 50;

/// The name of the view that others are compared with.
pub(crate) const FIRST: &str = "first";
/// The name of the view of ever other time ranges, so that neither end of one was asked for lately.
pub(crate) const NEW_RANGE: &str = "middle of another time range each time";
/// How many there are: their ends are in more leaves than anybody remembers of one timeline.
const NEW_RANGES: u64 = 16;

impl Viewed {
    fn new(name: &'static str, mix: &Arc<Mix>, view: View, share: f64) -> Viewed {
        let total = mix.shown(&View { per_page: 1, ..view.clone() }).total;
        let view = view.at_share(share, total);
        Viewed { name, mix: mix.clone(), want: mix.shown(&view), view, others: Vec::new() }
    }

    /// What is asked for the `number`th time, and what it must show.
    pub(crate) fn turn(&self, number: usize) -> (&View, &Shown) {
        // Neighbours may end in one leaf, and are not asked for one after the other.
        match number * 5 % (1 + self.others.len()) {
            0 => (&self.view, &self.want),
            other => (&self.others[other - 1].0, &self.others[other - 1].1),
        }
    }

    /// The views of a campaign. All are made before anything is measured: to make them, events are made again, many of them.
    pub(crate) fn of_campaign(mix: &Arc<Mix>, campaign: u32, per_page: u64) -> Vec<Viewed> {
        let all = View::first(Timeline::Campaign(campaign), per_page);
        // Between two events' times, so that either end is ragged; a percent of the events further for each that is another.
        let range = |moved: u64| {
            let at_percent = |percent: u64| mix.event(mix.count() * percent / 100).at_ms;
            (at_percent(20 - moved) + 1, at_percent(80 + moved) - 1)
        };
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
        let in_range = |name, moved| view(name, View { range_ms: Some(range(moved)), ..all.clone() }, 0.5);
        if range(0).0 < range(0).1 {
            views.push(in_range("middle of a time range", 0));
            let mut each_time = in_range(NEW_RANGE, 1);
            each_time.others = (2..=NEW_RANGES)
                .map(|moved| in_range(NEW_RANGE, moved))
                .map(|Viewed { view, want, .. }| (view, want))
                .collect();
            views.push(each_time);
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
            let viewed = &views[at];
            let (view, want) = viewed.turn(round);
            let path = view.path(&viewed.mix);
            let begun = Instant::now();
            let answer = connection.get(&path).await?;
            let took = begun.elapsed();
            ensure!(answer.status.is_success(), "{path}: {}", answer.status);
            let shown = Shown::of_answer(&answer.body)?;
            if let Some(fault) = shown.fault(want) {
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
