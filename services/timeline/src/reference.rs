//! References: the names of campaigns, automations and lists, and the addresses of contacts. They come by the
//! compacted topic `mail.references`, key `{kind}:{account_id}:{id}`, an empty value deleting.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::event::{Refusal, code, object_json, optional, parse_object, required, text};
use crate::id::{self, AccountId, Id};

/// What a reference names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "named as the wire format names them")]
pub enum Kind {
    Campaign,
    Automation,
    List,
    Contact,
}

impl Kind {
    /// The kind as it is written.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Campaign => "campaign",
            Kind::Automation => "automation",
            Kind::List => "list",
            Kind::Contact => "contact",
        }
    }

    /// The kind that `name` names.
    pub fn parse(name: &str) -> Option<Kind> {
        [Kind::Campaign, Kind::Automation, Kind::List, Kind::Contact]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// Which thing a reference is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "named as the wire format names them")]
pub struct ReferenceKey {
    pub account: AccountId,
    pub kind: Kind,
    /// A contact's id is a UUID, in lower case.
    pub id: Id,
}

impl std::fmt::Display for ReferenceKey {
    /// The key of the topic: `{kind}:{account_id}:{id}`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.kind.name(), self.account, self.id)
    }
}

/// A reference as it changes: what is absent stays as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// What it is about.
    pub key: ReferenceKey,
    /// The name to show from now on.
    pub name: Option<Box<str>>,
    /// A contact's address.
    pub email: Option<Box<str>>,
    /// Deleted: its last name goes on being shown.
    pub deleted: bool,
}

/// Decodes one message of `mail.references`. The value is judged first; then the key must be the value's.
pub fn decode_reference(key: Option<&[u8]>, value: Option<&[u8]>) -> Result<Reference, Refusal> {
    let key = key.unwrap_or_default();
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        let key = decode_key(key).ok_or_else(|| {
            Refusal::new(
                code::KEY_MISMATCH,
                "the key of a deletion names nothing: expected {kind}:{account_id}:{id}",
            )
        })?;
        return Ok(Reference { key, name: None, email: None, deleted: true });
    };
    let reference = decode_reference_value(value)?;
    if decode_key(key).as_ref() != Some(&reference.key) {
        return Err(Refusal::new(
            code::KEY_MISMATCH,
            format!("the key is not that of the value: expected {}", reference.key),
        ));
    }
    Ok(reference)
}

/// Decodes a reference's value, as the topic and the intake (`"deleted": true`) have it.
pub fn decode_reference_value(value: &[u8]) -> Result<Reference, Refusal> {
    let raw: RawReference<'_> = parse_object(object_json(value)?)?;
    let kind = text("kind", raw.kind)?.ok_or_else(|| Refusal::missing("kind", KINDS))?;
    let kind = Kind::parse(&kind).ok_or_else(|| unknown_kind(&kind))?;
    let account = required("account_id", raw.account_id, AccountId::EXPECTED, AccountId::parse)?;
    let id = required("id", raw.id, expected_id(kind), |text| parse_id(kind, text))?;
    let deleted = match raw.deleted.map(RawValue::get) {
        None | Some("null" | "false") => false,
        Some("true") => true,
        Some(_) => return Err(Refusal::invalid("deleted", "true or false")),
    };
    Ok(Reference {
        key: ReferenceKey { account, kind, id },
        name: optional("name", raw.name, "text", |name| Some(name.into()))?,
        email: optional("email", raw.email, "text", |email| Some(email.into()))?,
        deleted,
    })
}

const KINDS: &str = "campaign, automation, list or contact";

#[derive(Deserialize)]
struct RawReference<'a> {
    #[serde(borrow)]
    kind: Option<&'a RawValue>,
    account_id: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    name: Option<&'a RawValue>,
    email: Option<&'a RawValue>,
    deleted: Option<&'a RawValue>,
}

fn decode_key(key: &[u8]) -> Option<ReferenceKey> {
    let mut parts = std::str::from_utf8(key).ok()?.splitn(3, ':');
    let (kind, account, id) = (Kind::parse(parts.next()?)?, AccountId::parse(parts.next()?)?, parts.next()?);
    Some(ReferenceKey { account, kind, id: parse_id(kind, id)? })
}

fn parse_id(kind: Kind, text: &str) -> Option<Id> {
    if kind == Kind::Contact && !id::is_uuid(text) { None } else { Id::parse(text) }
}

fn expected_id(kind: Kind) -> &'static str {
    if kind == Kind::Contact { "a UUID (RFC 9562)" } else { Id::EXPECTED }
}

fn unknown_kind(kind: &str) -> Refusal {
    let shown: String = kind.chars().take(40).collect();
    Refusal::new(code::UNKNOWN_KIND, format!("'kind' is unknown: '{shown}'; expected {KINDS}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_and_key_say_the_same() {
        let value = br#"{"kind":"campaign","account_id":"a","id":"c:1","name":"Spring Sale"}"#;
        let reference = decode_reference(Some(b"campaign:a:c:1"), Some(value)).expect("valid");
        assert_eq!(reference.name.as_deref(), Some("Spring Sale"));
        assert_eq!(reference.key.to_string(), "campaign:a:c:1");
        assert_eq!(
            decode_reference(Some(b"list:a:c:1"), Some(value)).expect_err("other").code,
            code::KEY_MISMATCH
        );
        assert!(decode_reference(Some(b"campaign:a:c:1"), Some(b"")).expect("deletes").deleted);
        assert!(decode_reference(Some(b"campaign:a:c:1"), None).expect("deletes").deleted);
    }

    #[test]
    fn a_refusal_says_what_was_expected() {
        for (value, code) in [
            (r#"{"kind":"person","account_id":"a","id":"x"}"#, code::UNKNOWN_KIND),
            (r#"{"kind":"contact","account_id":"a","id":"x"}"#, code::INVALID_FIELD),
            (r#"{"kind":"list","id":"x"}"#, code::MISSING_FIELD),
            (r#"{"kind":"list","account_id":"a","id":"x","name":5}"#, code::INVALID_FIELD),
            (r#"["#, code::MALFORMED_JSON),
        ] {
            assert_eq!(decode_reference_value(value.as_bytes()).expect_err(value).code, code, "{value}");
        }
    }
}
