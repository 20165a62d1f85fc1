//! Raw events and references. What is taken is written again as plain JSON, and must be read as the same; what is refused has one
//! of the documented codes.

use backstamp_tests::contract::fixtures;
use fuzz::{Run, Target};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use timeline::event::{Link, MESSAGE_BYTES_MAX, code, decode_event};
use timeline::filter::ListManagementFilter;
use timeline::reference::{Reference, decode_reference};
use timeline::row::{Placing, decode_placed, encode_placed, project};
use timeline::send::{SendFacts, join, message_to_join};
use timeline::{Event, Refusal, RowBody, Timestamp};

use crate::{NOW, hold, same};

/// Words of events and references.
pub(crate) const WORDS: &[&str] = &[
    "\"id\"",
    "\"account_id\"",
    "\"type\"",
    "\"occurred_at\"",
    "\"contact_id\"",
    "\"email\"",
    "\"message_id\"",
    "\"campaign_id\"",
    "\"automation_id\"",
    "\"list_id\"",
    "\"step_id\"",
    "\"url\"",
    "\"link\"",
    "\"bounce\"",
    "\"reason\"",
    "\"purchase\"",
    "\"metadata\"",
    "\"order_uuid\"",
    "\"product_uuid\"",
    "\"product_name\"",
    "\"variant_name\"",
    "\"is_subscription\"",
    "\"send\"",
    "\"click\"",
    "\"open\"",
    "\"purchase\"",
    "\"unsubscribe\"",
    "\"preferences\"",
    "\"content\"",
    "\"hard\"",
    "\"soft\"",
    "\"kind\"",
    "\"name\"",
    "\"deleted\"",
    "\"campaign\"",
    "\"automation\"",
    "\"list\"",
    "\"contact\"",
    "\"acme\"",
    "\"123e4567-e89b-12d3-a456-426614174000\"",
    "\"2026-04-17T14:23:05.123Z\"",
    "2026-02-29",
    "T23:59:60",
    "+23:59",
    "-00:00",
    ".123456789",
    "\\ud83d\\udce7",
    "\\u0061",
    "{\"a\":[[{}]]}",
    "\"a\":1,",
];

pub(crate) fn targets() -> Vec<Target> {
    vec![
        Target {
            name: "events",
            seeds: || messages("events").into_iter().map(|(_, message)| message).collect(),
            words: WORDS,
            bytes_max: MESSAGE_BYTES_MAX + 16,
            start: start_events,
        },
        Target {
            name: "references",
            seeds: references,
            words: WORDS,
            bytes_max: 4096,
            start: start_references,
        },
    ]
}

/// The examples of `events` or `references`, good and bad, with their keys. What is longer than most is only too large.
pub(crate) fn messages(kind: &str) -> Vec<(Option<String>, Vec<u8>)> {
    let good = fixtures::good(kind).into_iter().map(|(_, value)| {
        let text = |name: &str| value[name].as_str().unwrap_or_default();
        let key =
            (kind == "references").then(|| format!("{}:{}:{}", text("kind"), text("account_id"), text("id")));
        (key, value.to_string().into_bytes())
    });
    let bad = fixtures::bad(kind).into_iter().map(|bad| (bad.key, bad.message));
    good.chain(bad).filter(|(_, message)| message.len() < 16 << 10).collect()
}

/// The good events, as they are decoded.
pub(crate) fn events() -> Vec<Event> {
    let events: Vec<Event> =
        messages("events").iter().filter_map(|(_, message)| decode_event(message, NOW).ok()).collect();
    assert!(events.len() > 40, "the good examples are good");
    events
}

fn start_events() -> Run {
    let patterns =
        "*.mail.example/u/*/off,acme=acme.example/prefs/**,x.example/m?action=unsubscribe,a.example/*a*";
    let filter = ListManagementFilter::parse(patterns).expect("patterns");
    Box::new(move |bytes| match decode_event(bytes, NOW) {
        Ok(event) => judge_event(&event, bytes.len(), &filter).map(|()| event.event_type.name()),
        Err(refusal) => known_code(&refusal),
    })
}

fn judge_event(event: &Event, bytes: usize, filter: &ListManagementFilter) -> Result<(), String> {
    // What happened in no year of four digits cannot be written as it is read. And what was as long as allowed may be longer now.
    let is_writable = (-62_167_219_200_000..253_402_300_800_000).contains(&event.at.0);
    if is_writable && bytes < MESSAGE_BYTES_MAX / 2 {
        let again = decode_event(written(event).as_bytes(), NOW);
        same("an event written again", &again.as_ref(), &Ok(event))?;
    }
    filter.matches(event);
    let facts = SendFacts::of(event);
    same("a send's facts", &SendFacts::decode(&facts.encode()), &Ok(facts.clone()))?;
    message_to_join(event);
    let joined = join(event, &facts);
    same("an event joined with itself", &joined, event)?;
    let mut all = Vec::new();
    for placing in [Placing::Complete, Placing::Incomplete, Placing::Completed, Placing::CompleteAfterWaiting]
    {
        let rows = project(event, NOW, placing);
        let counted = rows.iter().filter(|row| row.counts).count();
        hold(counted <= 1, || format!("{counted} rows count an event"))?;
        for row in &rows {
            hold((0..1000).contains(&(row.stamp - event.at.0 * 1000)), || format!("stamp {}", row.stamp))?;
            let body = RowBody::decode(&row.body).map_err(|error| error.to_string())?;
            same("a row's body", &body.encode(), &row.body)?;
            same("a row's rank", &RowBody::rank_of(&row.body), &body.rank)?;
            for text in [body.metadata, body.detail].into_iter().flatten() {
                let object =
                    serde_json::from_str::<&RawValue>(&text).is_ok_and(|raw| raw.get().starts_with('{'));
                hold(object, || format!("no object: {text}"))?;
            }
        }
        all.extend(rows);
    }
    same("placed rows", &decode_placed(&encode_placed(&all, NOW)), &Ok((all, NOW)))
}

/// An event as plain JSON.
fn written(event: &Event) -> String {
    let bounce = event
        .bounce
        .as_ref()
        .map(|bounce| json!({ "type": if bounce.hard { "hard" } else { "soft" }, "reason": bounce.reason }));
    let fields = json!({
        "account_id": event.account.as_str(),
        "id": event.id.as_str(),
        "type": event.event_type.name(),
        "occurred_at": time(event.at),
        "contact_id": event.contact.map(|contact| contact.to_string()),
        "email": event.email,
        "message_id": event.message.as_ref().map(timeline::Id::as_str),
        "campaign_id": event.campaign.as_ref().map(timeline::Id::as_str),
        "automation_id": event.automation.as_ref().map(timeline::Id::as_str),
        "list_id": event.list.as_ref().map(timeline::Id::as_str),
        "step_id": event.step.as_ref().map(timeline::Id::as_str),
        "url": event.url,
        "link": match event.link {
            Link::Content => "content",
            Link::Unsubscribe => "unsubscribe",
            Link::Preferences => "preferences",
        },
        "bounce": bounce,
        "purchase": event.purchase.as_ref().map(|purchase| serde_json::to_value(purchase).expect("JSON")),
    });
    let fields = fields.to_string();
    match &event.metadata {
        // As it came, to the letter.
        Some(metadata) => fields.replacen('{', &format!(r#"{{"metadata":{metadata},"#), 1),
        None => fields,
    }
}

fn time(at: Timestamp) -> String {
    format!("{}.{:03}Z", &at.to_rfc3339()[..19], at.0.rem_euclid(1000))
}

/// Key and value, a line's end between them.
fn references() -> Vec<Vec<u8>> {
    let joined = messages("references").into_iter().map(|(key, value)| match key {
        Some(key) => [key.as_bytes(), b"\n", &value].concat(),
        None => value,
    });
    joined.chain([b"campaign:acme:a:b\n".to_vec(), b"contact:acme:x\n".to_vec()]).collect()
}

fn start_references() -> Run {
    Box::new(|bytes| {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (key, value) = end.map_or((None, bytes), |end| (Some(&bytes[..end]), &bytes[end + 1..]));
        match decode_reference(key, Some(value)) {
            Ok(reference) => {
                let key = reference.key.to_string();
                let deletion = decode_reference(Some(key.as_bytes()), None);
                same("a deletion's key", &deletion.map(|deletion| deletion.key), &Ok(reference.key.clone()))?;
                if value.is_empty() {
                    return Ok("deletion");
                }
                let again =
                    decode_reference(Some(key.as_bytes()), Some(plain(&reference).to_string().as_bytes()));
                same("a reference written again", &again, &Ok(reference.clone()))?;
                Ok(reference.key.kind.name())
            }
            Err(refusal) => known_code(&refusal),
        }
    })
}

fn plain(reference: &Reference) -> Value {
    json!({
        "kind": reference.key.kind.name(),
        "account_id": reference.key.account.as_str(),
        "id": reference.key.id.as_str(),
        "name": reference.name,
        "email": reference.email,
        "deleted": reference.deleted,
    })
}

/// The code, if it is a documented one.
pub(crate) fn known_code(refusal: &Refusal) -> Result<&'static str, String> {
    const CODES: [&str; 10] = [
        code::MALFORMED_JSON,
        code::MISSING_FIELD,
        code::INVALID_FIELD,
        code::UNKNOWN_TYPE,
        code::UNKNOWN_KIND,
        code::INVALID_TIME,
        code::TIME_AHEAD,
        code::TOO_LARGE,
        code::KEY_MISMATCH,
        code::FOREIGN_ACCOUNT,
    ];
    hold(CODES.contains(&refusal.code), || format!("an unknown code: {refusal}"))?;
    hold(refusal.message.len() < 1024, || format!("a long message: {refusal}"))?;
    Ok(refusal.code)
}
