//! Bytes of the log as they come back, sound or not. Only with the feature `testing`.

use bytes::Bytes;

use super::format::{HEADER_BYTES, NoRecord, checksum, decode, encode};
use crate::record::Outgoing;

/// Reads the record that `bytes` start with, and writes again what it read: its own bytes. An error is how many are needed, or
/// `None` where it is no record.
pub fn record(bytes: &Bytes) -> Result<Vec<u8>, Option<usize>> {
    let stored = decode(bytes).map_err(|no_record| match no_record {
        NoRecord::Short(needed) => Some(needed),
        NoRecord::Bad => None,
    })?;
    let (durable, at) = (stored.durable, stored.appended_at);
    let part = |part: Option<Bytes>| part.map(|part| part.to_vec());
    let mut again = Vec::new();
    encode(&mut again, durable, at, &Outgoing::new(stored.topic, part(stored.key), part(stored.value)));
    Ok(again)
}

/// Makes the checksum of `bytes` right, where there is one: damage that it does not tell.
pub fn repair(bytes: &mut [u8]) {
    if let Some((header, body)) = bytes.split_at_mut_checked(HEADER_BYTES) {
        let right = checksum(&header[4..8], body);
        header[8..].copy_from_slice(&right.to_le_bytes());
    }
}
