//! A span cut into slices that CQL can select with relations on single columns.
//!
//! `(occurred_at, event_id) >= (?, ?)` would say it in one, but ScyllaDB does not mix relations on several columns with
//! `type IN ?`, and a request for each type would be fifteen. So the whole milliseconds are one slice, and a bound
//! inside a millisecond is a slice of its own, cut by id on the server: a million events may share a millisecond.

use timeline::Span;

/// What one request selects within each type. Instants are in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slice<'a> {
    /// The milliseconds from `first` to `last`, both inclusive.
    Times { first: i64, last: i64 },
    /// In the millisecond `at`, the ids from `from` on.
    IdsFrom { at: i64, from: &'a str },
    /// In the millisecond `at`, the ids before `until`.
    IdsUntil { at: i64, until: &'a str },
    /// In the millisecond `at`, the ids from `from` on and before `until`.
    Ids { at: i64, from: &'a str, until: &'a str },
}

/// The slices of `span`, latest first: at most three, none of which overlap.
pub(super) fn slices(span: &Span) -> Vec<Slice<'_>> {
    if span.is_empty() {
        return Vec::new();
    }
    let (mut first, from) = (span.from.at.0, &*span.from.id);
    let (end, until) = (span.until.at.0, &*span.until.id);
    if first == end {
        return vec![Slice::Ids { at: first, from, until }];
    }
    let mut slices = Vec::with_capacity(3);
    if !until.is_empty() {
        slices.push(Slice::IdsUntil { at: end, until });
    }
    let begins_within = (!from.is_empty()).then_some(Slice::IdsFrom { at: first, from });
    first += i64::from(begins_within.is_some());
    if first < end {
        slices.push(Slice::Times { first, last: end - 1 });
    }
    slices.extend(begins_within);
    slices
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use timeline::{Position, Timestamp};

    fn holds(slice: &Slice<'_>, position: &Position) -> bool {
        let (time, id) = (position.at.0, &*position.id);
        match *slice {
            Slice::Times { first, last } => (first..=last).contains(&time),
            Slice::IdsFrom { at, from } => time == at && id >= from,
            Slice::IdsUntil { at, until } => time == at && id < until,
            Slice::Ids { at, from, until } => time == at && id >= from && id < until,
        }
    }

    fn position() -> impl Strategy<Value = Position> {
        let at = prop_oneof![Just(i64::MIN), Just(i64::MAX), 0_i64..4];
        (at, "[ab]{0,2}").prop_map(|(at, id)| Position { at: Timestamp(at), id: id.into() })
    }

    proptest! {
        #[test]
        fn a_position_is_in_one_slice_if_in_the_span(from in position(), until in position(), row in position()) {
            let span = Span { from, until };
            let held = slices(&span).iter().filter(|slice| holds(slice, &row)).count();
            prop_assert_eq!(held, usize::from(span.contains(&row)));
        }
    }

    #[test]
    fn whole_milliseconds_are_one_request() {
        assert_eq!(slices(&Span::all()), [Slice::Times { first: i64::MIN, last: i64::MAX - 1 }]);
        let day = Span::of_times(Timestamp(0), Timestamp(9));
        assert_eq!(slices(&day), [Slice::Times { first: 0, last: 9 }]);
    }
}
