//! What the endpoints must show of a mix: the total and the events of any page, found by making the events again.

use std::cmp::Reverse;

use serde_json::Value;
use uuid::Uuid;

use super::{Event, Kind, Mix};

/// A page of a timeline, under the filters that its endpoint has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) timeline: Timeline,
    pub(crate) kind: Option<Kind>,
    /// Of a campaign's events, those of one contact.
    pub(crate) contact: Option<u32>,
    /// The first and the last millisecond wanted.
    pub(crate) range_ms: Option<(i64, i64)>,
    pub(crate) per_page: u64,
    /// Counted from 1.
    pub(crate) page: u64,
}

/// Whose events are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timeline {
    Campaign(u32),
    Contact(u32),
}

/// An answer: how many events there are, and the ids of those on the page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) total: u64,
    pub(crate) ids: Vec<String>,
}

impl View {
    /// The first page of a timeline, without a filter.
    pub(crate) fn first(timeline: Timeline, per_page: u64) -> View {
        View { timeline, kind: None, contact: None, range_ms: None, per_page, page: 1 }
    }

    /// The page that ends at most `share` down the `total` events that there are: 0 is the first, 1 the last.
    pub(crate) fn at_share(self, share: f64, total: u64) -> View {
        let last = total.div_ceil(self.per_page).max(1);
        View { page: ((last as f64 * share).ceil() as u64).clamp(1, last), ..self }
    }

    /// What is asked of a server for it.
    pub(crate) fn path(&self, mix: &Mix) -> String {
        let mut path = match self.timeline {
            Timeline::Campaign(campaign) => format!("/v1/campaigns/{}/events", mix.campaign_id(campaign)),
            Timeline::Contact(contact) => format!("/contacts/{}/events", mix.contact_id(contact)),
        };
        path += &format!("?per_page={}&page={}", self.per_page, self.page);
        if let Some(kind) = self.kind {
            path += &format!("&type={}", kind.shown());
        }
        if let Some(contact) = self.contact {
            path += &format!("&contact_id={}", mix.contact_id(contact));
        }
        if let Some((from_ms, to_ms)) = self.range_ms {
            let shown = |at_ms| chrono::DateTime::from_timestamp_millis(at_ms).unwrap_or_default();
            let format = "%Y-%m-%dT%H:%M:%S%.3fZ";
            path += &format!(
                "&from_date={}&to_date={}",
                shown(from_ms).format(format),
                shown(to_ms).format(format)
            );
        }
        path
    }

    fn wants(&self, event: &Event) -> bool {
        let is_on = match self.timeline {
            Timeline::Campaign(campaign) => event.campaign == campaign,
            Timeline::Contact(contact) => event.contact == contact && event.kind.is_on_contact(),
        };
        is_on
            && self.kind.is_none_or(|kind| event.kind == kind)
            && self.contact.is_none_or(|contact| event.contact == contact)
    }
}

impl Mix {
    /// What a view must show.
    pub(crate) fn shown(&self, view: &View) -> Shown {
        let (begin, end) = view.range_ms.map_or((0, self.count()), |(from_ms, to_ms)| {
            (self.first_from(from_ms), self.first_from(to_ms.saturating_add(1)))
        });
        let total = (begin..end).filter(|number| view.wants(&self.event(*number))).count() as u64;
        let ids = self.newest(view, begin, end).map(|event| match view.timeline {
            Timeline::Campaign(_) => event.shown_id(),
            Timeline::Contact(_) => shown_uuid(&event.shown_id()),
        });
        Shown { total, ids: ids.collect() }
    }

    /// The events of a view's page, newest first, equal times by id.
    fn newest(&self, view: &View, begin: u64, end: u64) -> impl Iterator<Item = Event> {
        let wanted = (view.page * view.per_page) as usize;
        let mut rows: Vec<Event> = Vec::new();
        let mut next = end;
        // How many were found before those in `rows`, all of them on earlier pages.
        let mut passed = 0;
        while next > begin && passed + rows.len() < wanted {
            let at_ms = self.event(next - 1).at_ms;
            if passed + rows.len() + (view.per_page as usize) < wanted {
                (passed, rows) = (passed + rows.len(), Vec::new());
            }
            let tied = rows.len();
            while next > begin && self.event(next - 1).at_ms == at_ms {
                next -= 1;
                rows.extend(Some(self.event(next)).filter(|event| view.wants(event)));
            }
            rows[tied..].sort_unstable_by_key(|event| Reverse(event.id));
        }
        let skipped = ((view.page - 1) * view.per_page) as usize - passed;
        rows.into_iter().skip(skipped).take(view.per_page as usize)
    }

    /// The first number whose event is at `at_ms` or later.
    fn first_from(&self, at_ms: i64) -> u64 {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let middle = low.midpoint(high);
            if self.event(middle).at_ms < at_ms { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// How many events each campaign has of each kind.
    pub(crate) fn totals(&self) -> Vec<[u64; 8]> {
        let mut totals = vec![[0; 8]; self.campaigns() as usize];
        for number in 0..self.count() {
            let event = self.event(number);
            totals[event.campaign as usize][event.kind as usize] += 1;
        }
        totals
    }
}

impl Shown {
    /// What a server's answer shows, on either endpoint.
    pub(crate) fn of_answer(body: &[u8]) -> anyhow::Result<Shown> {
        let answer: Value = serde_json::from_slice(body)?;
        let (rows, total, id) = match answer["data"]["events"].as_array() {
            Some(rows) => (rows, &answer["meta"]["total"], "id"),
            None => match answer["data"].as_array() {
                Some(rows) => (rows, &answer["pagination"]["total"], "uuid"),
                None => anyhow::bail!("no events in the answer"),
            },
        };
        let ids = rows.iter().filter_map(|row| row[id].as_str().map(str::to_owned)).collect();
        Ok(Shown { total: total.as_u64().unwrap_or_default(), ids })
    }

    /// What is wrong with it, where it isn't `want`.
    pub(crate) fn fault(&self, want: &Shown) -> Option<String> {
        if self.total != want.total {
            return Some(format!("says {} in total, not {}", self.total, want.total));
        }
        (self.ids != want.ids).then(|| "shows other events than it must".to_owned())
    }
}

/// An event's id as the contact timeline shows it.
fn shown_uuid(id: &str) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, id.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mix::Shape;

    fn mix(shape: Shape) -> Mix {
        Mix::new(shape, "cmp", 4000, 1_790_000_000_000, 2)
    }

    /// All events that a view wants, sorted at once.
    fn sorted(mix: &Mix, view: &View) -> Vec<String> {
        let mut events: Vec<Event> = (0..mix.count()).map(|number| mix.event(number)).collect();
        events.retain(|event| {
            let in_range =
                view.range_ms.is_none_or(|(from_ms, to_ms)| (from_ms..=to_ms).contains(&event.at_ms));
            in_range && view.wants(event)
        });
        events.sort_by_key(|event| (event.at_ms, event.shown_id()));
        events.iter().rev().map(Event::shown_id).collect()
    }

    #[test]
    fn pages_put_together_are_the_sorted_events() {
        for shape in [Shape::Giant, Shape::Mixed, Shape::SameSecond, Shape::Contact] {
            let mix = mix(shape);
            let all = View::first(Timeline::Campaign(0), 30);
            let (from_ms, to_ms) = (mix.event(1000).at_ms, mix.event(3000).at_ms);
            for view in [
                all.clone(),
                View { kind: Some(Kind::Clicked), ..all.clone() },
                View { contact: Some(mix.event(7).contact), ..all.clone() },
                View { range_ms: Some((from_ms, to_ms)), ..all.clone() },
            ] {
                let want = sorted(&mix, &view);
                let pages = want.len().div_ceil(30) as u64 + 1;
                let shown: Vec<Shown> =
                    (1..=pages).map(|page| mix.shown(&View { page, ..view.clone() })).collect();
                assert!(shown.iter().all(|shown| shown.total == want.len() as u64));
                assert_eq!(shown.into_iter().flat_map(|shown| shown.ids).collect::<Vec<_>>(), want);
            }
        }
    }

    #[test]
    fn totals_are_those_of_the_views() {
        let mix = mix(Shape::Mixed);
        let totals = mix.totals();
        assert_eq!(totals.iter().flatten().sum::<u64>(), mix.count());
        for campaign in [0, 1, 17, 150] {
            let all = View::first(Timeline::Campaign(campaign), 1);
            let of = &totals[campaign as usize];
            assert_eq!(mix.shown(&all).total, of.iter().sum::<u64>());
            let opened = View { kind: Some(Kind::Opened), ..all };
            assert_eq!(mix.shown(&opened).total, of[Kind::Opened as usize]);
        }
    }

    #[test]
    fn a_contact_shows_neither_replies_nor_complaints() {
        let mix = mix(Shape::Contact);
        let totals = mix.totals();
        let hidden: u64 =
            totals.iter().map(|of| of[Kind::Replied as usize] + of[Kind::Complained as usize]).sum();
        let shown = mix.shown(&View::first(Timeline::Contact(0), 10));
        assert!(hidden > 0);
        assert_eq!(shown.total, mix.count() - hidden);
        assert!(shown.ids.iter().all(|id| Uuid::try_parse(id).is_ok()));
    }

    #[test]
    fn a_view_is_a_path() {
        let mix = mix(Shape::Giant);
        let view = View {
            kind: Some(Kind::RARE),
            range_ms: Some((1_790_000_000_123, 1_790_000_001_000)),
            ..View::first(Timeline::Campaign(0), 50)
        };
        let view = view.at_share(1.0, 4000);
        let want = "/v1/campaigns/cmp_0/events?per_page=50&page=80&type=complained\
                    &from_date=2026-09-21T14:13:20.123Z&to_date=2026-09-21T14:13:21.000Z";
        assert_eq!(view.path(&mix), want);
        assert_eq!(View::first(Timeline::Campaign(0), 50).at_share(0.5, 4000).page, 40);
    }
}
