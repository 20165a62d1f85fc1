//! API keys. A key is `wbk_`, 192 random bits and their CRC-32, both in hexadecimal: the checksum tells a mistyped key from
//! an unknown one without a look at the store. Only the SHA-256 of a key is ever stored.

use sha2::{Digest, Sha256};

use crate::id::AccountId;
use crate::time::Timestamp;

/// The random bytes of a key.
pub const KEY_RANDOM_BYTES: usize = 24;

const PREFIX: &str = "wbk_";

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Permission {
    /// `campaigns:read`
    CampaignsRead,
    /// `contacts:read`
    ContactsRead,
    /// `events:write`
    EventsWrite,
    /// `references:write`
    ReferencesWrite,
}

impl Permission {
    /// Every permission.
    pub const ALL: [Permission; 4] = [
        Permission::CampaignsRead,
        Permission::ContactsRead,
        Permission::EventsWrite,
        Permission::ReferencesWrite,
    ];

    /// The permission as it is written.
    pub fn name(self) -> &'static str {
        match self {
            Permission::CampaignsRead => "campaigns:read",
            Permission::ContactsRead => "contacts:read",
            Permission::EventsWrite => "events:write",
            Permission::ReferencesWrite => "references:write",
        }
    }

    /// The permission that `name` names.
    pub fn parse(name: &str) -> Option<Permission> {
        Permission::ALL.into_iter().find(|permission| permission.name() == name)
    }
}

/// A key as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// The first 16 hexadecimal digits of the digest: what `keys list` shows and `keys revoke` takes.
    pub id: String,
    /// SHA-256 of the key.
    pub digest: [u8; 32],
    /// Whose data it opens.
    pub account: AccountId,
    /// What it may do.
    pub permissions: Vec<Permission>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops working, if ever.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked, if it was.
    pub revoked_at: Option<Timestamp>,
}

impl KeyRecord {
    /// Whether the key works at `now`.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }
}

/// The key made of `random`.
pub fn format_key(random: &[u8; KEY_RANDOM_BYTES]) -> String {
    format!("{PREFIX}{}{:08x}", hex(random), crc32fast::hash(random))
}

/// The SHA-256 of `key`, or `None` where it is no key at all: wrong form or checksum.
pub fn digest_key(key: &str) -> Option<[u8; 32]> {
    let digits = key.strip_prefix(PREFIX)?.as_bytes();
    if digits.len() != KEY_RANDOM_BYTES * 2 + 8 {
        return None;
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let bytes = digits
        .chunks(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect::<Option<Vec<u8>>>()?;
    let (random, checksum) = bytes.split_at(KEY_RANDOM_BYTES);
    (checksum == crc32fast::hash(random).to_be_bytes()).then(|| Sha256::digest(key.as_bytes()).into())
}

/// The id of the key with `digest`.
pub fn key_id(digest: &[u8; 32]) -> String {
    hex(&digest[..8])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_told_from_a_mistyped_one() {
        let key = format_key(&[7; KEY_RANDOM_BYTES]);
        assert!(digest_key(&key).is_some());
        assert_eq!(digest_key(&key.replacen("07", "08", 1)), None);
        for bad in ["", "wbk_", &key[..key.len() - 1], &key.to_uppercase(), "wbk_ä"] {
            assert_eq!(digest_key(bad), None, "{bad}");
        }
    }
}
