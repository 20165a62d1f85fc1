//! What stands under a key that has a write timestamp: the timestamp, how long it lives, and its bytes or that they are
//! deleted.

use timeline::Timestamp;
use timeline::codec::Damaged;

/// A value, or the mark of a deleted one, which keeps earlier writes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell<'a> {
    /// The write timestamp.
    pub(super) stamp: i64,
    /// How long it lives.
    pub(super) life: Life,
    /// The value; `None` where it is deleted.
    pub(super) bytes: Option<&'a [u8]>,
}

/// How long a cell lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// Until an instant.
    Until(Timestamp),
    /// For so many milliseconds, which begin with the next sweep: whoever wrote it knew no time of day.
    Length(i64),
}

/// Kind, timestamp, life.
const HEAD_BYTES: usize = 17;
const DELETED: u8 = 1;
const LENGTH: u8 = 2;
/// The first form of a cell; others would have other bits.
const VERSION: u8 = 1 << 4;

impl<'a> Cell<'a> {
    /// The stored form.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (bytes, deleted) = self.bytes.map_or((&[][..], DELETED), |bytes| (bytes, 0));
        let (life, length) = match self.life {
            Life::Until(end) => (end.0, 0),
            Life::Length(length_ms) => (length_ms, LENGTH),
        };
        let mut stored = Vec::with_capacity(HEAD_BYTES + bytes.len());
        stored.push(VERSION | deleted | length);
        stored.extend(self.stamp.to_le_bytes());
        stored.extend(life.to_le_bytes());
        stored.extend_from_slice(bytes);
        stored
    }

    /// Reads the stored form.
    pub(super) fn decode(stored: &'a [u8]) -> Result<Cell<'a>, Damaged> {
        Cell::read(stored).ok_or(Damaged { what: "cell" })
    }

    fn read(stored: &'a [u8]) -> Option<Cell<'a>> {
        let (kind, rest) = stored.split_first()?;
        let (stamp, rest) = rest.split_first_chunk()?;
        let (life, bytes) = rest.split_first_chunk()?;
        let life = i64::from_le_bytes(*life);
        let known = kind & !(DELETED | LENGTH) == VERSION;
        known.then_some(Cell {
            stamp: i64::from_le_bytes(*stamp),
            life: if kind & LENGTH == 0 { Life::Until(Timestamp(life)) } else { Life::Length(life) },
            bytes: (kind & DELETED == 0).then_some(bytes),
        })
    }

    /// Whether writing it changes what is there: the later write wins; of two with one timestamp a deletion, else the
    /// first.
    pub(super) fn beats(&self, there: &Cell<'_>) -> bool {
        self.stamp > there.stamp
            || (self.stamp == there.stamp && self.bytes.is_none() && there.bytes.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_comes_back_as_it_was() {
        for bytes in [None, Some(&b""[..]), Some(b"body")] {
            for life in [Life::Until(Timestamp(-5)), Life::Length(7)] {
                let cell = Cell { stamp: i64::MIN, life, bytes };
                assert_eq!(Cell::decode(&cell.encode()), Ok(cell));
            }
        }
        assert!(Cell::decode(&[VERSION; 16]).is_err());
        assert!(Cell::decode(&[0; 40]).is_err());
    }
}
