//! Raw events, as mail senders publish them to `mail.events`: one JSON object a message.
//!
//! [`decode_event`] is bytes in, [`Event`] or [`Refusal`] out. A refusal has a stable code and a message that names
//! the field and what was expected; the message's bytes go to the dead-letter topic as they came.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::id::{self, AccountId, Id};
use crate::time::{self, DAY_MS, Timestamp};

/// The largest message, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// The largest `metadata` object, in bytes without white space.
pub const METADATA_BYTES_MAX: usize = 8 * 1024;
/// How deep `metadata` may nest.
pub const METADATA_DEPTH_MAX: u32 = 64;
/// How far ahead of its broker timestamp an event may have occurred, in milliseconds.
pub const AHEAD_MS_MAX: i64 = DAY_MS;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "named as the references name them")]
pub enum EventType {
    Sent = 0,
    Delivered = 1,
    Opened = 2,
    Clicked = 3,
    Replied = 4,
    Bounced = 5,
    Complained = 6,
    Subscribed = 7,
    Unsubscribed = 8,
    GloballyUnsubscribed = 9,
    GloballyResubscribed = 10,
    AutomationUnsubscribed = 11,
    Purchased = 12,
    Created = 13,
    Imported = 14,
    /// No event: it stands in the place of one whose contact was forgotten, so that a repeat is told. It shows nowhere and counts nowhere.
    Erased = 15,
}

use EventType::*;

impl EventType {
    /// Every type, by its number.
    pub const ALL: [EventType; 16] = [
        Sent,
        Delivered,
        Opened,
        Clicked,
        Replied,
        Bounced,
        Complained,
        Subscribed,
        Unsubscribed,
        GloballyUnsubscribed,
        GloballyResubscribed,
        AutomationUnsubscribed,
        Purchased,
        Created,
        Imported,
        Erased,
    ];

    /// The type of a raw event's `type`: the sender's name or the one that the endpoints show.
    pub fn from_raw(name: &str) -> Option<EventType> {
        Some(match name {
            "send" | "sent" => Sent,
            "delivery" | "delivered" => Delivered,
            "open" | "opened" => Opened,
            "click" | "clicked" => Clicked,
            "reply" | "replied" => Replied,
            "bounce" | "bounced" => Bounced,
            "complaint" | "complained" => Complained,
            "subscribe" | "subscribed" => Subscribed,
            "unsubscribe" | "unsubscribed" => Unsubscribed,
            "global_unsubscribe" | "globally_unsubscribed" => GloballyUnsubscribed,
            "global_resubscribe" | "globally_resubscribed" => GloballyResubscribed,
            "automation_unsubscribe" | "automation_unsubscribed" => AutomationUnsubscribed,
            "purchase" | "purchased" => Purchased,
            "create" | "created" => Created,
            "import" | "imported" => Imported,
            _ => return None,
        })
    }

    /// The name that the contact timeline shows.
    pub fn name(self) -> &'static str {
        match self {
            Sent => "sent",
            Delivered => "delivered",
            Opened => "opened",
            Clicked => "clicked",
            Replied => "replied",
            Bounced => "bounced",
            Complained => "complained",
            Subscribed => "subscribed",
            Unsubscribed => "unsubscribed",
            GloballyUnsubscribed => "globally_unsubscribed",
            GloballyResubscribed => "globally_resubscribed",
            AutomationUnsubscribed => "automation_unsubscribed",
            Purchased => "purchased",
            Created => "created",
            Imported => "imported",
            Erased => "erased",
        }
    }

    /// The name that the campaign stream shows: every opt-out is `unsubscribed`.
    pub fn campaign_name(self) -> &'static str {
        match self {
            GloballyUnsubscribed | AutomationUnsubscribed => Unsubscribed.name(),
            other => other.name(),
        }
    }

    /// The type of a stored number.
    pub fn from_number(number: u8) -> Option<EventType> {
        EventType::ALL.get(usize::from(number)).copied()
    }
}

/// A set of event types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub struct TypeSet(u16);

impl TypeSet {
    /// Every type.
    pub const ALL: TypeSet = TypeSet(u16::MAX);
    /// What the campaign stream shows.
    pub const CAMPAIGN: TypeSet = TypeSet::of(&[
        Sent,
        Delivered,
        Opened,
        Clicked,
        Replied,
        Bounced,
        Complained,
        Unsubscribed,
        GloballyUnsubscribed,
        AutomationUnsubscribed,
    ]);
    /// What the contact timeline shows.
    pub const CONTACT: TypeSet = TypeSet(TypeSet::ALL.0 & !TypeSet::of(&[Replied, Complained, Erased]).0);

    /// What either shows.
    pub const SHOWN: TypeSet = TypeSet(TypeSet::CAMPAIGN.0 | TypeSet::CONTACT.0);

    /// The set of `types`.
    pub const fn of(types: &[EventType]) -> TypeSet {
        let (mut bits, mut at) = (0, 0);
        while at < types.len() {
            bits |= 1 << types[at] as u16;
            at += 1;
        }
        TypeSet(bits)
    }

    /// Whether `event_type` is in the set.
    pub fn contains(self, event_type: EventType) -> bool {
        self.0 & (1 << event_type as u16) != 0
    }

    /// The set with `event_type`.
    #[must_use]
    pub fn with(self, event_type: EventType) -> TypeSet {
        TypeSet(self.0 | 1 << event_type as u16)
    }

    /// The types in either set.
    #[must_use]
    pub fn or(self, other: TypeSet) -> TypeSet {
        TypeSet(self.0 | other.0)
    }

    /// The types in both sets.
    #[must_use]
    pub fn and(self, other: TypeSet) -> TypeSet {
        TypeSet(self.0 & other.0)
    }

    /// Whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The types in the set, by number.
    pub fn iter(self) -> impl Iterator<Item = EventType> {
        EventType::ALL.into_iter().filter(move |event_type| self.contains(*event_type))
    }
}

/// A valid raw event.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "named as the wire format names them")]
pub struct Event {
    pub account: AccountId,
    pub id: Id,
    pub event_type: EventType,
    pub at: Timestamp,
    pub contact: Option<Uuid>,
    pub email: Option<Box<str>>,
    pub message: Option<Id>,
    pub campaign: Option<Id>,
    pub automation: Option<Id>,
    pub list: Option<Id>,
    pub step: Option<Id>,
    pub url: Option<Box<str>>,
    pub link: Link,
    pub bounce: Option<Bounce>,
    pub purchase: Option<Purchase>,
    /// The `metadata` object as JSON text, as it came.
    pub metadata: Option<Box<str>>,
}

/// What a clicked link is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Link {
    /// Something worth reading.
    #[default]
    Content,
    /// The one-click unsubscribe link (RFC 8058) or the footer's.
    Unsubscribe,
    /// The subscription preferences.
    Preferences,
}

/// A bounce's classification.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Bounce {
    /// Permanent (`hard`); otherwise transient (`soft`).
    pub hard: bool,
    /// What the receiving server said.
    pub reason: Option<Box<str>>,
}

/// What was bought: product identity, never an amount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "named as the wire format names them")]
pub struct Purchase {
    pub order_uuid: Box<str>,
    pub product_uuid: Box<str>,
    pub product_name: Box<str>,
    pub variant_name: Option<Box<str>>,
    pub is_subscription: bool,
}

/// Why a message is no event or reference of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// A stable lower-case code, used as a metric label: see [`code`].
    pub code: &'static str,
    /// What, where and what was expected.
    pub message: String,
}

/// The codes of a [`Refusal`].
pub mod code {
    /// Not UTF-8, not JSON, not an object, or a field twice.
    pub const MALFORMED_JSON: &str = "malformed_json";
    /// A required field is not there.
    pub const MISSING_FIELD: &str = "missing_field";
    /// A field has the wrong JSON type, syntax or length.
    pub const INVALID_FIELD: &str = "invalid_field";
    /// `type` is none of the known ones.
    pub const UNKNOWN_TYPE: &str = "unknown_type";
    /// A reference's `kind` is none of the known ones.
    pub const UNKNOWN_KIND: &str = "unknown_kind";
    /// `occurred_at` is not RFC 3339 with a zone.
    pub const INVALID_TIME: &str = "invalid_time";
    /// `occurred_at` is more than 24 h ahead of the broker's timestamp.
    pub const TIME_AHEAD: &str = "time_ahead";
    /// The message is over 64 KiB.
    pub const TOO_LARGE: &str = "too_large";
    /// A reference's key names something else than its value.
    pub const KEY_MISMATCH: &str = "key_mismatch";
    /// The intake only: the `account_id` is not the key's.
    pub const FOREIGN_ACCOUNT: &str = "foreign_account";
}

impl Refusal {
    /// A refusal with `code`.
    pub fn new(code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into() }
    }

    pub(crate) fn missing(field: &str, expected: &str) -> Refusal {
        Refusal::new(code::MISSING_FIELD, format!("'{field}' is missing: expected {expected}"))
    }

    pub(crate) fn invalid(field: &str, expected: &str) -> Refusal {
        Refusal::new(code::INVALID_FIELD, format!("'{field}' is invalid: expected {expected}"))
    }
}

/// Decodes one message of `mail.events`, whose broker timestamp is `appended_at`.
///
/// Fields are read as text at once. Where one turns out to be something else, or anything at all is wrong with the JSON, the
/// message is read again, each field kept as it was written, so that the refusal can say what is wrong. Both ways lead to
/// `event_of`.
pub fn decode_event(message: &[u8], appended_at: Timestamp) -> Result<Event, Refusal> {
    let json = object_json(message)?;
    match serde_json::from_str::<RawEvent<'_, Text<'_>>>(json) {
        Ok(raw) => event_of(raw, appended_at),
        Err(_) => decode_precisely(json, appended_at),
    }
}

fn decode_precisely(json: &str, appended_at: Timestamp) -> Result<Event, Refusal> {
    event_of(parse_object::<RawEvent<'_, &RawValue>>(json)?, appended_at)
}

fn event_of<'a, T: TextField<'a>>(raw: RawEvent<'a, T>, appended_at: Timestamp) -> Result<Event, Refusal> {
    let account = required("account_id", raw.account_id, AccountId::EXPECTED, AccountId::parse)?;
    let id = required("id", raw.id, Id::EXPECTED, Id::parse)?;
    let type_name =
        text("type", raw.r#type)?.ok_or_else(|| Refusal::missing("type", "an event type, such as open"))?;
    let event_type = EventType::from_raw(&type_name).ok_or_else(|| {
        Refusal::new(
            code::UNKNOWN_TYPE,
            format!("'type' is unknown: '{}'; expected an event type, such as open", excerpt(&type_name)),
        )
    })?;
    let at = occurred_at(raw.occurred_at, appended_at)?;
    let contact = optional("contact_id", raw.contact_id, "a UUID (RFC 9562)", id::parse_uuid)?;
    let message = optional_id("message_id", raw.message_id)?;
    if contact.is_none() && message.is_none() {
        return Err(Refusal::missing("contact_id", "a UUID (RFC 9562), unless message_id is given"));
    }
    let url = text("url", raw.url)?;
    if event_type == Clicked && url.is_none() {
        return Err(Refusal::missing("url", "the clicked link"));
    }
    let purchase = purchase(raw.purchase)?;
    if event_type == Purchased && purchase.is_none() {
        return Err(Refusal::missing(
            "purchase",
            "an object with order_uuid, product_uuid, product_name and is_subscription",
        ));
    }
    Ok(Event {
        account,
        id,
        event_type,
        at,
        contact,
        email: text("email", raw.email)?.filter(|email| !email.is_empty()).map(Into::into),
        message,
        campaign: optional_id("campaign_id", raw.campaign_id)?,
        automation: optional_id("automation_id", raw.automation_id)?,
        list: optional_id("list_id", raw.list_id)?,
        step: optional_id("step_id", raw.step_id)?,
        url: url.map(Into::into),
        link: link(raw.link)?,
        bounce: bounce(raw.bounce)?,
        purchase,
        metadata: metadata(raw.metadata)?,
    })
}

/// A raw event whose text was read as `T`.
#[derive(Deserialize)]
struct RawEvent<'a, T> {
    account_id: Option<T>,
    id: Option<T>,
    r#type: Option<T>,
    occurred_at: Option<T>,
    contact_id: Option<T>,
    email: Option<T>,
    message_id: Option<T>,
    campaign_id: Option<T>,
    automation_id: Option<T>,
    list_id: Option<T>,
    step_id: Option<T>,
    url: Option<T>,
    link: Option<T>,
    #[serde(borrow)]
    bounce: Option<&'a RawValue>,
    purchase: Option<&'a RawValue>,
    metadata: Option<&'a RawValue>,
}

/// A field that should be text, as it was read.
pub(crate) trait TextField<'a> {
    /// Its text; `null` is absent.
    fn text(self, field: &str) -> Result<Option<Cow<'a, str>>, Refusal>;
}

/// A field that was read as text; borrowed where nothing in it is escaped.
#[derive(Deserialize)]
#[serde(transparent)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

impl<'a> TextField<'a> for Text<'a> {
    fn text(self, _field: &str) -> Result<Option<Cow<'a, str>>, Refusal> {
        Ok(Some(self.0))
    }
}

/// A field as it was written.
impl<'a> TextField<'a> for &'a RawValue {
    fn text(self, field: &str) -> Result<Option<Cow<'a, str>>, Refusal> {
        let Some(raw) = present(Some(self)) else { return Ok(None) };
        if !raw.starts_with('"') {
            return Err(Refusal::invalid(field, "text"));
        }
        let text: Text<'_> =
            serde_json::from_str(raw).map_err(|_| Refusal::invalid(field, "text of valid Unicode"))?;
        Ok(Some(text.0))
    }
}

#[derive(Deserialize)]
struct RawBounce<'a> {
    #[serde(borrow)]
    r#type: Option<&'a RawValue>,
    reason: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawPurchase<'a> {
    #[serde(borrow)]
    order_uuid: Option<&'a RawValue>,
    product_uuid: Option<&'a RawValue>,
    product_name: Option<&'a RawValue>,
    variant_name: Option<&'a RawValue>,
    is_subscription: Option<&'a RawValue>,
}

fn occurred_at<'a>(raw: Option<impl TextField<'a>>, appended_at: Timestamp) -> Result<Timestamp, Refusal> {
    let expected = "RFC 3339 with a zone, such as 2026-04-17T14:23:05.123Z";
    let Some(text) = text("occurred_at", raw)? else {
        return Err(Refusal::missing("occurred_at", expected));
    };
    let read = time::parse_date_time(&text).filter(|read| read.zoned).ok_or_else(|| {
        Refusal::new(
            code::INVALID_TIME,
            format!("'occurred_at' is invalid: '{}'; expected {expected}", excerpt(&text)),
        )
    })?;
    if read.at > appended_at.plus_ms(AHEAD_MS_MAX) {
        return Err(Refusal::new(
            code::TIME_AHEAD,
            format!("'occurred_at' is more than 24 h ahead: '{}'", excerpt(&text)),
        ));
    }
    Ok(read.at)
}

fn link<'a>(raw: Option<impl TextField<'a>>) -> Result<Link, Refusal> {
    match text("link", raw)?.as_deref() {
        None | Some("content") => Ok(Link::Content),
        Some("unsubscribe") => Ok(Link::Unsubscribe),
        Some("preferences") => Ok(Link::Preferences),
        Some(_) => Err(Refusal::invalid("link", "content, unsubscribe or preferences")),
    }
}

fn bounce(raw: Option<&RawValue>) -> Result<Option<Bounce>, Refusal> {
    let Some(raw) = object::<RawBounce<'_>>("bounce", raw, "an object with type and reason")? else {
        return Ok(None);
    };
    let hard = match text("bounce.type", raw.r#type)?.as_deref() {
        Some("hard") => true,
        None | Some("soft") => false,
        Some(_) => return Err(Refusal::invalid("bounce.type", "hard or soft")),
    };
    Ok(Some(Bounce { hard, reason: text("bounce.reason", raw.reason)?.map(Into::into) }))
}

fn purchase(raw: Option<&RawValue>) -> Result<Option<Purchase>, Refusal> {
    let expected = "an object with order_uuid, product_uuid, product_name and is_subscription";
    let Some(raw) = object::<RawPurchase<'_>>("purchase", raw, expected)? else { return Ok(None) };
    let name = |field: &str, raw| match text(field, raw)? {
        Some(name) if !name.is_empty() => Ok(name),
        Some(_) => Err(Refusal::invalid(field, "text that is not empty")),
        None => Err(Refusal::missing(field, "text that is not empty")),
    };
    Ok(Some(Purchase {
        order_uuid: name("purchase.order_uuid", raw.order_uuid)?.into(),
        product_uuid: name("purchase.product_uuid", raw.product_uuid)?.into(),
        product_name: name("purchase.product_name", raw.product_name)?.into(),
        variant_name: text("purchase.variant_name", raw.variant_name)?.map(Into::into),
        is_subscription: match raw.is_subscription.map(RawValue::get) {
            Some("true") => true,
            Some("false") => false,
            None | Some("null") => return Err(Refusal::missing("purchase.is_subscription", "true or false")),
            Some(_) => return Err(Refusal::invalid("purchase.is_subscription", "true or false")),
        },
    }))
}

fn metadata(raw: Option<&RawValue>) -> Result<Option<Box<str>>, Refusal> {
    let Some(raw) = present(raw) else { return Ok(None) };
    if !raw.starts_with('{') {
        return Err(Refusal::invalid("metadata", "an object of up to 8 KiB"));
    }
    // What is stored is served as it came: one event must not make a page that its reader's parser refuses.
    if is_plainly_servable(raw) {
        return Ok(Some(raw.into()));
    }
    let bytes = servable_bytes(raw).ok_or_else(|| {
        Refusal::invalid("metadata", "an object at most 64 levels deep, its text valid Unicode")
    })?;
    if bytes > METADATA_BYTES_MAX {
        return Err(Refusal::invalid("metadata", "an object of up to 8 KiB"));
    }
    Ok(Some(raw.into()))
}

/// Whether valid JSON is short, flat and free of escapes, as nearly all is: then there is nothing to look for.
fn is_plainly_servable(json: &str) -> bool {
    let opened = || json.bytes().filter(|byte| (*byte == b'{') | (*byte == b'[')).count();
    json.len() <= METADATA_BYTES_MAX && !json.contains('\\') && opened() <= METADATA_DEPTH_MAX as usize
}

/// How long valid JSON is without white space; `None` where it nests too deep or escapes half a surrogate pair.
fn servable_bytes(json: &str) -> Option<usize> {
    let bytes = json.as_bytes();
    let unit = |at: usize| {
        let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let (mut depth, mut quoted, mut at, mut blank) = (0_u32, false, 0, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => match unit(at) {
                Some(0xd800..=0xdbff) if matches!(unit(at + 6), Some(0xdc00..=0xdfff)) => at += 11,
                Some(0xd800..=0xdfff) => return None,
                Some(_) => at += 5,
                None => at += 1,
            },
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => depth += 1,
            b'}' | b']' if !quoted => depth -= 1,
            b' ' | b'\t' | b'\n' | b'\r' if !quoted => blank += 1,
            _ => {}
        }
        if depth > METADATA_DEPTH_MAX {
            return None;
        }
        at += 1;
    }
    Some(bytes.len() - blank)
}

/// The refusal of a message of `bytes` bytes.
fn too_large(bytes: usize) -> Refusal {
    Refusal::new(
        code::TOO_LARGE,
        format!("the message has {bytes} bytes: expected at most {MESSAGE_BYTES_MAX}"),
    )
}

/// The text of a message that should be one JSON object.
pub(crate) fn object_json(message: &[u8]) -> Result<&str, Refusal> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(too_large(message.len()));
    }
    let json = std::str::from_utf8(message).map_err(|error| {
        malformed(format!(
            "the message is not UTF-8 after byte {}: expected one JSON object",
            error.valid_up_to()
        ))
    })?;
    // serde would take an array for a struct.
    if !json.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
        return Err(malformed("the message is no JSON object: expected {…}"));
    }
    Ok(json)
}

/// Reads the text of a message.
pub(crate) fn parse_object<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, Refusal> {
    serde_json::from_str(json)
        .map_err(|error| malformed(format!("the message is not JSON: {error}; expected one object")))
}

fn malformed(what: impl Into<String>) -> Refusal {
    Refusal::new(code::MALFORMED_JSON, what)
}

fn object<'a, T: Deserialize<'a>>(
    field: &str,
    raw: Option<&'a RawValue>,
    expected: &str,
) -> Result<Option<T>, Refusal> {
    match present(raw) {
        None => Ok(None),
        Some(raw) if raw.starts_with('{') => {
            serde_json::from_str(raw).map(Some).map_err(|_| Refusal::invalid(field, expected))
        }
        Some(_) => Err(Refusal::invalid(field, expected)),
    }
}

/// A field's text; `null` is absent.
pub(crate) fn text<'a>(
    field: &str,
    raw: Option<impl TextField<'a>>,
) -> Result<Option<Cow<'a, str>>, Refusal> {
    raw.map_or(Ok(None), |raw| raw.text(field))
}

fn present(raw: Option<&RawValue>) -> Option<&str> {
    raw.map(RawValue::get).filter(|raw| *raw != "null")
}

pub(crate) fn required<'a, T>(
    field: &str,
    raw: Option<impl TextField<'a>>,
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, Refusal> {
    optional(field, raw, expected, parse)?.ok_or_else(|| Refusal::missing(field, expected))
}

pub(crate) fn optional<'a, T>(
    field: &str,
    raw: Option<impl TextField<'a>>,
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, Refusal> {
    text(field, raw)?.map(|text| parse(&text).ok_or_else(|| Refusal::invalid(field, expected))).transpose()
}

fn optional_id<'a>(field: &str, raw: Option<impl TextField<'a>>) -> Result<Option<Id>, Refusal> {
    optional(field, raw, Id::EXPECTED, Id::parse)
}

/// The beginning of a value that a message shows.
fn excerpt(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp(1_790_000_000_000);

    fn decode(json: &str) -> Result<Event, Refusal> {
        decode_event(json.as_bytes(), NOW)
    }

    fn with(fields: &str) -> Result<Event, Refusal> {
        decode(&format!(
            r#"{{"id":"e1","account_id":"a","type":"open","occurred_at":"2026-04-17T14:23:05Z","contact_id":"123e4567-e89b-12d3-a456-426614174000"{fields}}}"#
        ))
    }

    #[test]
    fn a_minimal_event_is_read_and_unknown_fields_are_ignored() {
        let event = with(r#","colour":{"deep":[1]},"campaign_id":null,"email":"j\u0061ne@example.com""#)
            .expect("valid");
        assert_eq!(event.event_type, Opened);
        assert_eq!(event.at.to_rfc3339(), "2026-04-17T14:23:05Z");
        assert_eq!((event.campaign, event.email.as_deref()), (None, Some("jane@example.com")));
    }

    #[test]
    fn a_refusal_names_the_field() {
        for (fields, code, field) in [
            (r#","campaign_id":5"#, code::INVALID_FIELD, "campaign_id"),
            (r#","campaign_id":"a b""#, code::INVALID_FIELD, "campaign_id"),
            (r#","link":"footer""#, code::INVALID_FIELD, "link"),
            (r#","bounce":"hard""#, code::INVALID_FIELD, "bounce"),
            (r#","bounce":{"type":"medium"}"#, code::INVALID_FIELD, "bounce.type"),
            (r#","metadata":[]"#, code::INVALID_FIELD, "metadata"),
            (r#","metadata":{"a":"\ud800"}"#, code::INVALID_FIELD, "metadata"),
            (r#","metadata":{"a":"\ud800\u0041"}"#, code::INVALID_FIELD, "metadata"),
            (r#","email":"\ud800""#, code::INVALID_FIELD, "email"),
            (r#","purchase":{"order_uuid":"o"}"#, code::MISSING_FIELD, "purchase.product_uuid"),
        ] {
            let refusal = with(fields).expect_err(fields);
            assert_eq!(refusal.code, code, "{fields}");
            assert!(refusal.message.contains(&format!("'{field}'")), "{fields}: {}", refusal.message);
        }
        assert!(with(r#","metadata":{"a":"\ud83d\ude00 \\u \u00e4"}"#).is_ok());
        let deep = format!(r#","metadata":{{"a":{}{}}}"#, "[".repeat(64), "]".repeat(64));
        assert_eq!(with(&deep).expect_err("too deep").code, code::INVALID_FIELD);
        let large = format!(r#","metadata":{{"a":"{}"}}"#, "x".repeat(METADATA_BYTES_MAX));
        assert_eq!(with(&large).expect_err("too large").code, code::INVALID_FIELD);
    }

    #[test]
    fn what_is_no_object_is_malformed() {
        for bad in [&b"[]"[..], b"\"x\"", b"", b"{", b"\xff{}", b"{}{}", br#"{"id":"a","id":"b"}"#] {
            assert_eq!(decode_event(bad, NOW).expect_err("malformed").code, code::MALFORMED_JSON);
        }
        assert_eq!(
            decode_event(&vec![b' '; MESSAGE_BYTES_MAX + 1], NOW).expect_err("large").code,
            code::TOO_LARGE
        );
    }

    /// Values that a field may be given: right ones, wrong ones, and ones that are written in unusual ways.
    fn value() -> impl Strategy<Value = String> {
        let odd = [
            "null",
            "true",
            "-0.5e+7",
            "1e999",
            "[]",
            "[[{}]]",
            "{}",
            r#""""#,
            r#""a b""#,
            r#""\ud800""#,
            r#""\ud83d\ude00""#,
            r#""\udc00\ud800""#,
            r#""\/a\u0041\n""#,
            r#""\x""#,
            "\"\u{1}\"",
            r#""ä\u00e4""#,
            "nul",
            "\"open",
            "1 2",
            "'a'",
        ];
        let right = [
            r#""e1""#,
            r#""A-b_c.d:e""#,
            r#""open""#,
            r#""click""#,
            r#""bounce""#,
            r#""purchased""#,
            r#""op\u0065n""#,
            r#""2026-04-17T14:23:05Z""#,
            r#""2026-04-17t14:23:05.123456+02:00""#,
            r#""2029-01-01T00:00:00Z""#,
            r#""123e4567-e89b-12d3-a456-426614174000""#,
            r#""123E4567-E89B-12D3-A456-42661417400A""#,
            r#""hard""#,
            r#""https:\/\/a.example\/?b=c""#,
            r#""unsubscribe""#,
            r#"{"type":"hard","reason":"550"}"#,
            r#"{"type":null,"type":"soft"}"#,
            r#"{"order_uuid":"o","product_uuid":"p","product_name":"n","is_subscription":true}"#,
            r#"{"order_uuid":"o","product_uuid":"","product_name":"n","is_subscription":1}"#,
            r#"{ "user_agent" : "a\u0042", "url":"b", "c" : [ 1e400 , {} ] }"#,
            r#"["hard","550"]"#,
        ];
        prop_oneof![
            2 => prop::sample::select(odd.map(String::from).to_vec()),
            3 => prop::sample::select(right.map(String::from).to_vec()),
        ]
    }

    /// Messages of a valid event's fields, some of them given other values, left out, said twice or named in unusual ways; and
    /// now and then bytes that are wrong anywhere.
    fn message() -> impl Strategy<Value = Vec<u8>> {
        let names = [
            "account_id",
            "id",
            "type",
            "occurred_at",
            "contact_id",
            "email",
            "message_id",
            "campaign_id",
            "automation_id",
            "list_id",
            "step_id",
            "url",
            "link",
            "bounce",
            "purchase",
            "metadata",
            r"t\u0079pe",
            "unknown",
            r"\ud800",
            "",
        ];
        let base = [
            ("id", r#""e1""#),
            ("account_id", r#""a""#),
            ("type", r#""open""#),
            ("occurred_at", r#""2026-04-17T14:23:05Z""#),
            ("contact_id", r#""123e4567-e89b-12d3-a456-426614174000""#),
        ];
        let base = base.map(|(name, value)| (name, value.to_owned()));
        let fields = prop::collection::vec((prop::sample::select(names.to_vec()), value()), 0..5);
        let bytes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..2);
        (fields, any::<bool>(), prop::sample::select(vec!["", " ", "\n\t"]), bytes).prop_map(
            move |(changed, repeat, blank, bytes)| {
                let kept =
                    base.iter().filter(|(name, _)| repeat || changed.iter().all(|(other, _)| other != name));
                let fields =
                    kept.chain(&changed).map(|(name, value)| format!("\"{name}\"{blank}:{value}{blank}"));
                let mut message =
                    format!("{blank}{{{}}}{blank}", fields.collect::<Vec<_>>().join(",")).into_bytes();
                for (at, byte) in bytes {
                    let at = at.index(message.len());
                    message[at] = byte;
                }
                message
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn text_read_at_once_decides_as_the_second_reading_does(message in message()) {
            let precisely = object_json(&message).and_then(|json| decode_precisely(json, NOW));
            prop_assert_eq!(decode_event(&message, NOW), precisely);
        }

        #[test]
        fn metadata_that_needs_no_look_has_nothing_to_find(depth in 0_usize..80, text in r#"[\[{}a ]{0,60}"#) {
            let json = format!(r#"{{"a":{}"{text}"{}}}"#, "[".repeat(depth), "]".repeat(depth));
            let bytes = servable_bytes(&json);
            if is_plainly_servable(&json) {
                prop_assert!(bytes.is_some_and(|bytes| bytes <= METADATA_BYTES_MAX));
            }
            prop_assert_eq!(bytes.is_some(), depth < METADATA_DEPTH_MAX as usize);
        }
    }

    #[test]
    fn every_type_has_two_names_and_a_number() {
        for (number, event_type) in EventType::ALL.into_iter().enumerate() {
            // Nobody can send the mark that an erased row leaves.
            let sent = Some(event_type).filter(|event_type| *event_type != EventType::Erased);
            assert_eq!(EventType::from_raw(event_type.name()), sent);
            assert_eq!(EventType::from_number(u8::try_from(number).expect("small")), Some(event_type));
        }
        assert_eq!(
            TypeSet::CAMPAIGN
                .iter()
                .map(EventType::campaign_name)
                .collect::<std::collections::BTreeSet<_>>()
                .len(),
            8
        );
        assert_eq!(TypeSet::CONTACT.iter().count(), 13);
    }

    #[test]
    fn a_contact_may_be_left_to_the_send() {
        let json = r#"{"id":"e1","account_id":"a","type":"open","occurred_at":"2026-04-17T14:23:05Z","message_id":"m"}"#;
        assert_eq!(decode(json).expect("valid").contact, None);
        assert_eq!(
            decode(&json.replace("message_id", "other")).expect_err("neither").code,
            code::MISSING_FIELD
        );
    }
}
