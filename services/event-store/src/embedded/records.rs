//! The stored form of what has no cell of its own.

use timeline::codec::{Damaged, Reader, Writer};
use timeline::key::{KeyRecord, Permission};
use timeline::reference::Reference;
use timeline::{AccountId, Id, Timestamp};

use super::Cause;
use crate::{StoredReference, Waiting};

const VERSION: u8 = 1;

pub(super) fn encode_number(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

pub(super) fn decode_number(stored: &[u8]) -> Result<u64, Cause> {
    let bytes = stored.try_into().map_err(|_| Damaged { what: "number" })?;
    Ok(u64::from_be_bytes(bytes))
}

/// A waiting event without its account and message, which are in its key.
pub(super) fn encode_waiting(waiting: &Waiting) -> Vec<u8> {
    let mut out = Writer::new(VERSION);
    out.signed(waiting.at.0);
    out.bytes(waiting.id.as_str().as_bytes());
    out.signed(waiting.appended_at.0);
    out.signed(waiting.expires_at.0);
    out.bytes(&waiting.event);
    out.finish()
}

pub(super) fn decode_waiting(account: &AccountId, message: &Id, stored: &[u8]) -> Result<Waiting, Damaged> {
    let mut bytes = Reader::new(stored, VERSION, "waiting event")?;
    let at = Timestamp(bytes.signed()?);
    let id = Id::parse(bytes.text()?).ok_or(bytes.damaged())?;
    let (appended_at, expires_at) = (Timestamp(bytes.signed()?), Timestamp(bytes.signed()?));
    let event = bytes.bytes()?.to_vec();
    Ok(Waiting { account: account.clone(), message: message.clone(), at, id, event, appended_at, expires_at })
}

/// A reference's fields, each with the timestamp of its write.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ReferenceFields {
    name: Option<(i64, Box<str>)>,
    email: Option<(i64, Box<str>)>,
    deleted: Option<(i64, bool)>,
}

impl ReferenceFields {
    /// Takes over what `reference` brings, where it is later than what is there.
    pub(super) fn write(&mut self, reference: &Reference, stamp: i64) {
        write_field(&mut self.name, stamp, reference.name.clone());
        write_field(&mut self.email, stamp, reference.email.clone());
        write_field(&mut self.deleted, stamp, Some(reference.deleted));
    }

    /// The stored form.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(VERSION);
        for text in [&self.name, &self.email] {
            out.byte(u8::from(text.is_some()));
            if let Some((stamp, text)) = text {
                out.signed(*stamp);
                out.bytes(text.as_bytes());
            }
        }
        let (stamp, deleted) = self.deleted.unwrap_or((i64::MIN, false));
        out.signed(stamp);
        out.byte(u8::from(deleted));
        out.finish()
    }

    /// Reads the stored form.
    pub(super) fn decode(stored: &[u8]) -> Result<ReferenceFields, Damaged> {
        let mut bytes = Reader::new(stored, VERSION, "reference")?;
        let mut text = || {
            let there = bytes.byte()? != 0;
            let field = there.then(|| Ok((bytes.signed()?, bytes.text()?.into())));
            field.transpose()
        };
        let (name, email) = (text()?, text()?);
        let deleted = Some((bytes.signed()?, bytes.byte()? != 0));
        Ok(ReferenceFields { name, email, deleted })
    }
}

impl From<ReferenceFields> for StoredReference {
    fn from(fields: ReferenceFields) -> StoredReference {
        StoredReference {
            name: fields.name.map(|(_, name)| name),
            email: fields.email.map(|(_, email)| email),
            deleted: fields.deleted.is_some_and(|(_, deleted)| deleted),
        }
    }
}

fn write_field<T>(field: &mut Option<(i64, T)>, stamp: i64, value: Option<T>) {
    if let Some(value) = value
        && field.as_ref().is_none_or(|(there, _)| stamp > *there)
    {
        *field = Some((stamp, value));
    }
}

pub(super) fn encode_key(key: &KeyRecord) -> Vec<u8> {
    let mut out = Writer::new(VERSION);
    out.bytes(key.id.as_bytes());
    out.raw(&key.digest);
    out.bytes(key.account.as_str().as_bytes());
    out.number(key.permissions.len() as u64);
    for permission in &key.permissions {
        out.bytes(permission.name().as_bytes());
    }
    out.signed(key.created_at.0);
    for at in [key.expires_at, key.revoked_at] {
        out.byte(u8::from(at.is_some()));
        out.signed(at.map_or(0, |at| at.0));
    }
    out.finish()
}

pub(super) fn decode_key(stored: &[u8]) -> Result<KeyRecord, Damaged> {
    let mut bytes = Reader::new(stored, VERSION, "API key")?;
    let id = bytes.text()?.to_owned();
    let digest = bytes.raw(32)?.try_into().map_err(|_| bytes.damaged())?;
    let account = AccountId::parse(bytes.text()?).ok_or(bytes.damaged())?;
    let count: usize = bytes.small()?;
    let mut permissions = Vec::new();
    for _ in 0..count {
        // A permission of a later version opens nothing here.
        permissions.extend(Permission::parse(bytes.text()?));
    }
    let created_at = Timestamp(bytes.signed()?);
    let mut optional = || {
        let there = bytes.byte()? != 0;
        let at = Timestamp(bytes.signed()?);
        Ok(there.then_some(at))
    };
    let (expires_at, revoked_at) = (optional()?, optional()?);
    Ok(KeyRecord { id, digest, account, permissions, created_at, expires_at, revoked_at })
}
