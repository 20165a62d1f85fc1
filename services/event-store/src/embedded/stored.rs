//! Bytes of the store as they come back, sound or not: each of these reads some, and writes again what it read. Only with the
//! feature `testing`.

use timeline::row::RowKey;
use timeline::{AccountId, Id, TimelineId};

use super::cells::Cell;
use super::keys;
use super::records::{self, ReferenceFields};

/// A row's key, behind the `part_bytes` of its part.
pub fn row_key(bytes: &[u8], part_bytes: usize) -> Option<(RowKey, Vec<u8>)> {
    let row = keys::row_key(bytes, part_bytes)?;
    let mut again = bytes.to_vec();
    keys::set_row(&mut again, part_bytes, &row);
    Some((row, again))
}

/// What the keys of the rows of a part begin with.
pub fn part_of(timeline: &TimelineId, part: u32) -> Vec<u8> {
    keys::part_of(timeline, part)
}

/// What stands under a key that has a write timestamp.
pub fn cell(bytes: &[u8]) -> Option<Vec<u8>> {
    Cell::decode(bytes).ok().map(|cell| cell.encode())
}

/// A waiting event of some message.
pub fn waiting(account: &AccountId, message: &Id, bytes: &[u8]) -> Option<Vec<u8>> {
    let waiting = records::decode_waiting(account, message, bytes).ok()?;
    Some(records::encode_waiting(&waiting))
}

/// A reference.
pub fn reference(bytes: &[u8]) -> Option<Vec<u8>> {
    ReferenceFields::decode(bytes).ok().map(|fields| fields.encode())
}

/// An API key.
pub fn api_key(bytes: &[u8]) -> Option<Vec<u8>> {
    records::decode_key(bytes).ok().map(|key| records::encode_key(&key))
}

/// A number: the committed offset, an epoch.
pub fn number(bytes: &[u8]) -> Option<Vec<u8>> {
    records::decode_number(bytes).ok().map(|number| records::encode_number(number).to_vec())
}
