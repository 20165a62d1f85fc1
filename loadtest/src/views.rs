//! The pages that are measured: of a campaign the first, a middle and the last one, and what its filters leave of it; of a contact the
//! same. Each knows what it must show.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use anyhow::ensure;
use indicatif::ProgressBar;

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
}

/// The name of the view that others are compared with.
pub(crate) const FIRST: &str = "first";

impl Viewed {
    fn new(name: &'static str, mix: &Arc<Mix>, view: View, share: f64) -> Viewed {
        let total = mix.shown(&View { per_page: 1, ..view.clone() }).total;
        let view = view.at_share(share, total);
        Viewed { name, mix: mix.clone(), want: mix.shown(&view), view }
    }

    /// The views of a campaign. All are made before anything is measured: to make them, events are made again, many of them.
    pub(crate) fn of_campaign(mix: &Arc<Mix>, campaign: u32, per_page: u64) -> Vec<Viewed> {
        let all = View::first(Timeline::Campaign(campaign), per_page);
        let one_of_five = |nth: u64| mix.event(mix.count() * nth / 5);
        // Between two events' times, so that either end is ragged.
        let range_ms = Some((one_of_five(1).at_ms + 1, one_of_five(4).at_ms - 1));
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
        if range_ms.is_some_and(|(from_ms, to_ms)| from_ms < to_ms) {
            views.insert(4, view("middle of a time range", View { range_ms, ..all }, 0.5));
        }
        views
    }

    /// The views of a contact's timeline.
    pub(crate) fn of_contact(mix: &Arc<Mix>, contact: u32, per_page: u64) -> Vec<Viewed> {
        let all = View::first(Timeline::Contact(contact), per_page);
        [("contact: first", 0.0), ("contact: middle", 0.5), ("contact: last", 1.0)]
            .map(|(name, share)| Viewed::new(name, mix, all.clone(), share))
            .into()
    }
}

/// Asks for each of the pages `rounds` times, in turn, over one connection, each round beginning at another one, so that whatever else the
/// machine does falls on all alike. Returns the milliseconds that each took, from the request to the last byte, and what was wrong.
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
    let paths: Vec<String> = views.iter().map(|viewed| viewed.view.path(&viewed.mix)).collect();
    let mut took_ms = vec![Vec::with_capacity(rounds); views.len()];
    let mut wrong = BTreeSet::new();
    for round in 0..warm_up_rounds + rounds {
        for turn in 0..views.len() {
            let at = (round + turn) % views.len();
            let (viewed, path) = (&views[at], &paths[at]);
            let begun = Instant::now();
            let answer = connection.get(path).await?;
            let ms = begun.elapsed().as_secs_f64() * 1000.0;
            ensure!(answer.status.is_success(), "{path}: {}", answer.status);
            let shown = Shown::of_answer(&answer.body)?;
            if let Some(fault) = shown.fault(&viewed.want) {
                let (name, count) = (viewed.name, viewed.mix.count());
                wrong.insert(format!("{} of {count} events: {name} {fault}", viewed.mix.shape));
            }
            if round >= warm_up_rounds {
                took_ms[at].push(ms);
            }
        }
        bar.inc(1);
    }
    Ok((took_ms, wrong))
}
