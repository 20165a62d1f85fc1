//! One record: judged by the rules of the topic, with the key's account put in where it names none, and otherwise the
//! bytes that came.

use std::borrow::Cow;

use event_log::{Outgoing, Topic};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use timeline::event::{code, decode_event};
use timeline::reference::decode_reference_value;
use timeline::{AccountId, Refusal, Timestamp};

/// What a route takes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Events.
    Event,
    /// References.
    Reference,
}

impl Kind {
    /// The kind as metrics show it.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Kind::Event => "event",
            Kind::Reference => "reference",
        }
    }

    /// Judges a record that came at `now` with a key of `account`.
    pub(crate) fn accept(
        self,
        account: &AccountId,
        record: &[u8],
        now: Timestamp,
    ) -> Result<Outgoing, Refusal> {
        let record = with_account(record, account);
        match self {
            Kind::Event => {
                let event = decode_event(&record, now)?;
                check_account(&event.account, account)?;
                let campaign = event.campaign.as_ref().map(|id| id.as_str().into());
                let key = campaign.or_else(|| event.contact.map(|contact| contact.to_string().into_bytes()));
                Ok(Outgoing::new(Topic::Events, key, Some(record.into_owned())))
            }
            Kind::Reference => {
                let reference = decode_reference_value(&record)?;
                check_account(&reference.key.account, account)?;
                let key = reference.key.to_string().into_bytes();
                let value = (!reference.deleted).then(|| record.into_owned());
                Ok(Outgoing::new(Topic::References, Some(key), value))
            }
        }
    }
}

fn check_account(named: &AccountId, account: &AccountId) -> Result<(), Refusal> {
    if named == account {
        return Ok(());
    }
    Err(Refusal::new(code::FOREIGN_ACCOUNT, "'account_id' is not the account of the key"))
}

/// `record` with `account` in it: as it came where it names an account or is no object, so that decoding it says what
/// is wrong.
fn with_account<'a>(record: &'a [u8], account: &AccountId) -> Cow<'a, [u8]> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow, default, deserialize_with = "given")]
        account_id: Option<&'a RawValue>,
    }

    /// A field's value, `null` included.
    fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
        <&RawValue>::deserialize(deserializer).map(Some)
    }

    let Some((b'{', inner)) = record.split_first() else { return Cow::Borrowed(record) };
    let Ok(named) = serde_json::from_slice::<Named<'_>>(record) else { return Cow::Borrowed(record) };
    match named.account_id {
        None => {
            // An empty object needs no comma, and is refused either way.
            let comma = if inner.trim_ascii_start().starts_with(b"}") { "" } else { "," };
            let field = format!(r#"{{"account_id":"{account}"{comma}"#);
            Cow::Owned([field.as_bytes(), inner].concat())
        }
        Some(value) if value.get() == "null" => {
            // Where in the record the borrowed value is.
            let start = value.get().as_ptr().addr() - record.as_ptr().addr();
            let (before, after) = (&record[..start], &record[start + "null".len()..]);
            Cow::Owned([before, format!(r#""{account}""#).as_bytes(), after].concat())
        }
        Some(_) => Cow::Borrowed(record),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_790_000_000_000);
    const CONTACT: &str = "123e4567-e89b-12d3-a456-426614174000";

    fn account() -> AccountId {
        AccountId::parse("acme").expect("valid")
    }

    fn accept(kind: Kind, record: &str) -> Result<(Option<String>, Option<String>), &'static str> {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        kind.accept(&account(), record.as_bytes(), NOW)
            .map(|record| (record.key.map(text), record.value.map(text)))
            .map_err(|refusal| refusal.code)
    }

    fn event(fields: &str) -> String {
        format!(r#"{{ "id":"e", "type":"open","occurred_at":"2026-04-17T14:23:05Z"{fields} }}"#)
    }

    #[test]
    fn the_account_is_put_in_and_nothing_else_is_touched() {
        let came = event(r#","message_id":"m", "n":1.0e2"#);
        let value = came.replacen('{', r#"{"account_id":"acme","#, 1);
        assert_eq!(accept(Kind::Event, &came), Ok((None, Some(value))));
        let came = event(r#","message_id":"m","account_id": null ,"x":"null""#);
        let value = came.replacen("null", r#""acme""#, 1);
        assert_eq!(accept(Kind::Event, &came), Ok((None, Some(value))));
        let came = event(r#","message_id":"m","account\u005fid":"acme""#);
        assert_eq!(accept(Kind::Event, &came), Ok((None, Some(came.clone()))));
    }

    #[test]
    fn another_account_is_foreign() {
        let came = event(r#","message_id":"m","account_id":"globex""#);
        assert_eq!(accept(Kind::Event, &came), Err(code::FOREIGN_ACCOUNT));
        let came = r#"{"kind":"list","account_id":"globex","id":"l"}"#;
        assert_eq!(accept(Kind::Reference, came), Err(code::FOREIGN_ACCOUNT));
    }

    #[test]
    fn an_events_key_is_its_campaign_or_contact() {
        let key = |fields: String| accept(Kind::Event, &event(&fields)).map(|(key, _)| key);
        let campaign = format!(r#","contact_id":"{CONTACT}","campaign_id":"c""#);
        assert_eq!(key(campaign), Ok(Some("c".into())));
        let upper = CONTACT.to_uppercase();
        assert_eq!(key(format!(r#","contact_id":"{upper}""#)), Ok(Some(CONTACT.into())));
        assert_eq!(key(r#","message_id":"m""#.into()), Ok(None));
    }

    #[test]
    fn a_deleted_reference_is_an_empty_value() {
        let came = r#"{"kind":"campaign","id":"a:b","name":"Spring"}"#;
        let value = r#"{"account_id":"acme","kind":"campaign","id":"a:b","name":"Spring"}"#;
        let key = Some("campaign:acme:a:b".to_owned());
        assert_eq!(accept(Kind::Reference, came), Ok((key.clone(), Some(value.to_owned()))));
        let came = r#"{"kind":"campaign","id":"a:b","deleted":true}"#;
        assert_eq!(accept(Kind::Reference, came), Ok((key, None)));
    }

    #[test]
    fn what_is_wrong_is_said_by_the_decoder() {
        for (record, code) in [
            ("{}", code::MISSING_FIELD),
            ("{ }", code::MISSING_FIELD),
            ("5", code::MALFORMED_JSON),
            ("{", code::MALFORMED_JSON),
            ("{}{}", code::MALFORMED_JSON),
            (r#"{"account_id":"acme","account_id":"acme"}"#, code::MALFORMED_JSON),
            (r#"{"account_id":5}"#, code::INVALID_FIELD),
        ] {
            assert_eq!(accept(Kind::Event, record), Err(code), "{record}");
            assert!(accept(Kind::Reference, record).is_err(), "{record}");
        }
    }
}
