//! How a record stands in a segment.
//!
//! | bytes | | |
//! | --- | --- | --- |
//! | 4 | magic | `ff b5 4c 01`: no text holds it, for UTF-8 has no `ff` |
//! | 4 | length | of the body |
//! | 4 | checksum | CRC-32 of length and body |
//! | 8 | durable | body starts here: bytes of this segment that were fsynced when the record was written |
//! | 8 | appended at | milliseconds since the epoch |
//! | 1 | topic | |
//! | 1 | parts | bit 0: has a key, bit 1: has a value |
//! | 4 | key length | |
//! | … | key, value | |
//!
//! Numbers are little-endian. `durable` tells a torn tail from damage: where a record cannot be read and a
//! later one says that it was durable, it has been acknowledged and was damaged since.

use bytes::Bytes;
use timeline::Timestamp;

use crate::record::{Incoming, Outgoing, Topic};

pub(super) const MAGIC: [u8; 4] = [0xff, 0xb5, 0x4c, 0x01];
pub(super) const HEADER_BYTES: usize = 12;
const BODY_FIXED_BYTES: usize = 22;
/// The longest body: far above what the intake takes.
const BODY_BYTES_MAX: usize = 64 << 20;

const HAS_KEY: u8 = 1;
const HAS_VALUE: u8 = 2;

/// Bytes that a record takes.
pub(super) fn encoded_len(record: &Outgoing) -> usize {
    HEADER_BYTES + BODY_FIXED_BYTES + len(record.key.as_ref()) + len(record.value.as_ref())
}

/// Whether a record is short enough to be written.
pub(super) fn fits(record: &Outgoing) -> bool {
    encoded_len(record) - HEADER_BYTES <= BODY_BYTES_MAX
}

/// Appends a record that [`fits`] to `out`.
pub(super) fn encode(out: &mut Vec<u8>, durable: u64, appended_at: Timestamp, record: &Outgoing) {
    let start = out.len();
    let body_len = encoded_len(record) - HEADER_BYTES;
    let parts =
        if record.key.is_some() { HAS_KEY } else { 0 } | if record.value.is_some() { HAS_VALUE } else { 0 };
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&length(body_len));
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&durable.to_le_bytes());
    out.extend_from_slice(&appended_at.0.to_le_bytes());
    out.extend_from_slice(&[topic_number(record.topic), parts]);
    out.extend_from_slice(&length(len(record.key.as_ref())));
    out.extend_from_slice(record.key.as_deref().unwrap_or_default());
    out.extend_from_slice(record.value.as_deref().unwrap_or_default());
    let checksum = checksum(&out[start + 4..start + 8], &out[start + HEADER_BYTES..]);
    out[start + 8..start + HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
}

/// A record as it stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// Bytes of its segment that were fsynced when it was written.
    pub(super) durable: u64,
    pub(super) appended_at: Timestamp,
    pub(super) topic: Topic,
    pub(super) key: Option<Bytes>,
    pub(super) value: Option<Bytes>,
    /// Bytes that it takes.
    pub(super) len: usize,
}

impl Stored {
    pub(super) fn into_incoming(self, offset: u64) -> Incoming {
        Incoming {
            topic: self.topic,
            partition: 0,
            offset: i64::try_from(offset).unwrap_or(i64::MAX),
            key: self.key,
            value: self.value,
            appended_at: self.appended_at,
            traceparent: None,
        }
    }
}

/// Why there is no record at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoRecord {
    /// What is there may go on: this many bytes are needed from its start.
    Short(usize),
    /// It is none.
    Bad,
}

/// Reads the record that `bytes` start with. Key and value share their memory.
pub(super) fn decode(bytes: &Bytes) -> Result<Stored, NoRecord> {
    let magic = &bytes[..bytes.len().min(MAGIC.len())];
    if magic != &MAGIC[..magic.len()] {
        return Err(NoRecord::Bad);
    }
    if bytes.len() < HEADER_BYTES {
        return Err(NoRecord::Short(HEADER_BYTES));
    }
    let body_len = number(&bytes[4..8]);
    if !(BODY_FIXED_BYTES..=BODY_BYTES_MAX).contains(&body_len) {
        return Err(NoRecord::Bad);
    }
    let end = HEADER_BYTES + body_len;
    if bytes.len() < end {
        return Err(NoRecord::Short(end));
    }
    let body = bytes.slice(HEADER_BYTES..end);
    if checksum(&bytes[4..8], &body) as usize != number(&bytes[8..12]) {
        return Err(NoRecord::Bad);
    }
    let parts = body[17];
    let key_end = BODY_FIXED_BYTES + number(&body[18..22]);
    let topic = topic_of(body[16]).ok_or(NoRecord::Bad)?;
    if key_end > body.len() {
        return Err(NoRecord::Bad);
    }
    Ok(Stored {
        durable: u64::from_le_bytes(eight(&body[..8])),
        appended_at: Timestamp(i64::from_le_bytes(eight(&body[8..16]))),
        topic,
        key: (parts & HAS_KEY != 0).then(|| body.slice(BODY_FIXED_BYTES..key_end)),
        value: (parts & HAS_VALUE != 0).then(|| body.slice(key_end..)),
        len: end,
    })
}

pub(super) fn checksum(length: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(length);
    hasher.update(body);
    hasher.finalize()
}

fn topic_number(topic: Topic) -> u8 {
    match topic {
        Topic::Events => 0,
        Topic::References => 1,
        Topic::CampaignEvents => 2,
        Topic::DeadLetters => 3,
    }
}

fn topic_of(number: u8) -> Option<Topic> {
    Topic::ALL.into_iter().find(|topic| topic_number(*topic) == number)
}

fn len(part: Option<&Vec<u8>>) -> usize {
    part.map_or(0, Vec::len)
}

/// Four bytes of a length, which is below [`BODY_BYTES_MAX`].
fn length(len: usize) -> [u8; 4] {
    u32::try_from(len).expect("a record that fits is shorter than 4 GiB").to_le_bytes()
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

fn eight(bytes: &[u8]) -> [u8; 8] {
    let mut eight = [0; 8];
    eight.copy_from_slice(bytes);
    eight
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part() -> impl Strategy<Value = Option<Vec<u8>>> {
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40))
    }

    proptest! {
        #[test]
        fn a_record_is_read_back_and_a_part_of_it_is_short(
            key in part(), value in part(), durable: u64, at: i64, topic in 0_usize..4, more in part(),
        ) {
            let record = Outgoing::new(Topic::ALL[topic], key.clone(), value.clone());
            let mut bytes = Vec::new();
            encode(&mut bytes, durable, Timestamp(at), &record);
            let len = bytes.len();
            prop_assert_eq!(len, encoded_len(&record));
            for cut in 1..len {
                let short = decode(&Bytes::copy_from_slice(&bytes[..cut]));
                prop_assert!(matches!(short, Err(NoRecord::Short(needed)) if needed > cut));
            }
            bytes.extend(more.unwrap_or_default());
            let stored = Stored {
                durable,
                appended_at: Timestamp(at),
                topic: record.topic,
                key: key.map(Bytes::from),
                value: value.map(Bytes::from),
                len,
            };
            prop_assert_eq!(decode(&Bytes::from(bytes)), Ok(stored));
        }

        #[test]
        fn a_flipped_bit_is_noticed(key in part(), value in part(), place in any::<proptest::sample::Index>(), bit in 0..8_u8) {
            let mut bytes = Vec::new();
            encode(&mut bytes, 7, Timestamp(7), &Outgoing::new(Topic::Events, key, value));
            let place = place.index(bytes.len());
            bytes[place] ^= 1_u8 << bit;
            prop_assert!(decode(&Bytes::from(bytes)).is_err());
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode(&Bytes::from([MAGIC.to_vec(), bytes].concat()));
        }
    }
}
