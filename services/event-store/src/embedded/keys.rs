//! Keys in the order in which they are read. Ids have no NUL in them, so a NUL ends one, and no id that begins like
//! another gets into its range; numbers are big-endian, instants with their sign bit turned.
//!
//! Rows are read newest first, and what is in memory yet goes in one direction only, so their keys fall as positions rise:
//! every bit of the instant and of the event's id is turned, and what ends the id is greater than any character of one.

use std::ops::Bound;

use timeline::id::ID_CHARS_MAX;
use timeline::reference::ReferenceKey;
use timeline::row::RowKey;
use timeline::{AccountId, EventType, Id, Position, Span, Subject, TimelineId, Timestamp};

use crate::WaitingFrom;

/// Account, subject, part: what the keys of a part's rows begin with. Behind it come type, time and event id: all rows of a type
/// in a span are one range.
pub(super) fn part_of(timeline: &TimelineId, part: u32) -> Vec<u8> {
    let mut key = prefix(timeline);
    key.extend(part.to_be_bytes());
    key
}

/// Makes `key`, which begins with a part, the key of a row of it.
pub(super) fn set_row(key: &mut Vec<u8>, part_bytes: usize, row: &RowKey) {
    key.truncate(part_bytes);
    key.push(row.event_type as u8);
    push_position(key, &row.position);
}

/// A range of keys.
pub(super) type Keys = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// The range of the rows of one type in `span`, newest first.
pub(super) fn rows(timeline: &TimelineId, part: u32, event_type: EventType, span: &Span) -> Keys {
    let mut head = part_of(timeline, part);
    head.push(event_type as u8);
    let at = |position: &Position| {
        let mut key = head.clone();
        push_position(&mut key, position);
        key
    };
    (Bound::Excluded(at(&span.until)), Bound::Included(at(&span.from)))
}

/// The range of all rows of a part.
pub(super) fn rows_of_part(timeline: &TimelineId, part: u32) -> Keys {
    let first = part_of(timeline, part);
    let mut end = first.clone();
    end.push(u8::MAX);
    (Bound::Included(first), Bound::Excluded(end))
}

/// What a row is and where it stands, from its key, which begins with its part; `None` where it is no key of ours.
pub(super) fn row_key(row: &[u8], part_bytes: usize) -> Option<RowKey> {
    let (event_type, place) = row.get(part_bytes..)?.split_first()?;
    let (at, id) = place.split_first_chunk()?;
    let at = Timestamp((!u64::from_be_bytes(*at) ^ SIGN).cast_signed());
    let (_, id) = id.split_last()?;
    let mut text = [0; ID_CHARS_MAX];
    let text = text.get_mut(..id.len())?;
    text.iter_mut().zip(id).for_each(|(to, byte)| *to = !byte);
    let position = Position { at, id: std::str::from_utf8(text).ok()?.into() };
    Some(RowKey { position, event_type: EventType::from_number(*event_type)? })
}

/// Account, subject, cell.
pub(super) fn tally(timeline: &TimelineId, cell: u32) -> Vec<u8> {
    let mut key = prefix(timeline);
    key.extend(cell.to_be_bytes());
    key
}

/// Makes the key of one cell of a timeline that of another.
pub(super) fn set_cell(tally: &mut Vec<u8>, cell: u32) {
    tally.truncate(tally.len() - size_of::<u32>());
    tally.extend(cell.to_be_bytes());
}

/// Account, message.
pub(super) fn send(account: &AccountId, message: &Id) -> Vec<u8> {
    texts(b's', [account.as_str(), message.as_str()])
}

/// Account, message, time, event id.
pub(super) fn waiting(account: &AccountId, message: &Id, at: Timestamp, id: &Id) -> Vec<u8> {
    let mut key = waiting_of(account, message);
    key.extend(ordered(at));
    key.extend_from_slice(id.as_str().as_bytes());
    key
}

/// The range of the events that wait for one message, from somewhere on.
pub(super) fn waiting_from(WaitingFrom { account, message, after }: &WaitingFrom) -> Keys {
    let first = waiting_of(account, message);
    let mut end = first.clone();
    end.extend([u8::MAX; size_of::<i64>() + 1]);
    let after = after.as_ref().map(|(at, id)| Bound::Excluded(waiting(account, message, *at, id)));
    (after.unwrap_or(Bound::Included(first)), Bound::Excluded(end))
}

/// The beginning of the keys of the events that wait for one message.
fn waiting_of(account: &AccountId, message: &Id) -> Vec<u8> {
    texts(b'w', [account.as_str(), message.as_str()])
}

/// Account, kind, id.
pub(super) fn reference(key: &ReferenceKey) -> Vec<u8> {
    texts(b'r', [key.account.as_str(), key.kind.name(), key.id.as_str()])
}

/// Account, subject.
pub(super) fn known(timeline: &TimelineId) -> Vec<u8> {
    [b"k", prefix(timeline).as_slice()].concat()
}

/// Scope.
pub(super) fn epoch(scope: &str) -> Vec<u8> {
    texts(b'e', [scope])
}

/// Key id; with an empty one, the beginning of all.
pub(super) fn api_key(id: &str) -> Vec<u8> {
    [b"a", id.as_bytes()].concat()
}

/// The offset that was committed.
pub(super) const COMMITTED_OFFSET: &[u8] = b"o";

/// The form of the store.
pub(super) const FORMAT: &[u8] = b"f";

/// What turns the sign bit.
const SIGN: u64 = 1 << 63;

/// Adds a position, so that a later one makes a lesser key.
fn push_position(key: &mut Vec<u8>, position: &Position) {
    key.extend(ordered(position.at).map(|byte| !byte));
    key.extend(position.id.bytes().map(|byte| !byte));
    key.push(u8::MAX);
}

/// Account and subject. A UUID is of one length, and needs no end.
fn prefix(timeline: &TimelineId) -> Vec<u8> {
    let mut key = Vec::with_capacity(192);
    key.extend_from_slice(timeline.account.as_str().as_bytes());
    key.push(0);
    let (contact, id) = match &timeline.subject {
        Subject::Campaign(id) => (None, Some(id)),
        Subject::Contact(contact) => (Some(contact), None),
        Subject::ContactCampaign(contact, id) => (Some(contact), Some(id)),
    };
    key.push(u8::from(contact.is_some()) | u8::from(id.is_some()) << 1);
    key.extend(contact.into_iter().flat_map(|contact| contact.as_bytes()));
    if let Some(id) = id {
        key.extend_from_slice(id.as_str().as_bytes());
        key.push(0);
    }
    key
}

fn ordered(at: Timestamp) -> [u8; 8] {
    (at.0.cast_unsigned() ^ SIGN).to_be_bytes()
}

fn texts<const COUNT: usize>(table: u8, texts: [&str; COUNT]) -> Vec<u8> {
    let mut key = vec![table];
    for text in texts {
        key.extend_from_slice(text.as_bytes());
        key.push(0);
    }
    key
}

#[cfg(test)]
mod tests {
    use std::ops::RangeBounds;

    use super::*;
    use proptest::prelude::*;

    fn campaign(account: &str, id: &str) -> TimelineId {
        TimelineId::campaign(&AccountId::parse(account).expect("valid"), &Id::parse(id).expect("valid"))
    }

    fn position() -> impl Strategy<Value = Position> {
        (any::<i64>(), "[A-Za-z0-9_.:-]{1,64}")
            .prop_map(|(at, id)| Position { at: Timestamp(at), id: id.into() })
    }

    fn row(timeline: &TimelineId, part: u32, row: &RowKey) -> Vec<u8> {
        let mut key = part_of(timeline, part);
        let part_bytes = key.len();
        set_row(&mut key, part_bytes, row);
        key
    }

    proptest! {
        #[test]
        fn keys_are_in_the_order_of_positions(one in position(), other in position()) {
            let timeline = campaign("a", "c");
            let key = |position: &Position| row(&timeline, 7, &RowKey { position: position.clone(), event_type: EventType::Opened });
            prop_assert_eq!(key(&other).cmp(&key(&one)), one.cmp(&other));
            let read = row_key(&key(&one), part_of(&timeline, 7).len());
            prop_assert_eq!(read, Some(RowKey { position: one, event_type: EventType::Opened }));
        }
    }

    #[test]
    fn a_timeline_that_begins_like_another_is_out_of_its_range() {
        let range = rows(&campaign("a", "c"), 0, EventType::Sent, &Span::all());
        let key = RowKey { position: Position::at_start_of(Timestamp(0)), event_type: EventType::Sent };
        assert!(range.contains(&row(&campaign("a", "c"), 0, &key)));
        for (timeline, part) in [
            (campaign("a", "c1"), 0),
            (campaign("a", "c.1"), 0),
            (campaign("a.c", "c"), 0),
            (campaign("a", "c"), 1),
        ] {
            assert!(!range.contains(&row(&timeline, part, &key)), "{timeline:?} {part}");
        }
    }
}
