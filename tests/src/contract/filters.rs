//! Types, groups, contacts and bounds of time.

use chrono::TimeDelta;
use serde_json::{Value, json};

use super::{event, exact, minutes_ago, new_id, noon, shown};
use crate::model::Endpoint;
use crate::stack::{Account, Stack, path};

/// Every raw type, with the names that the two endpoints show it by.
const TYPES: [(&str, Option<&str>, Option<&str>); 15] = [
    ("send", Some("sent"), Some("sent")),
    ("delivery", Some("delivered"), Some("delivered")),
    ("bounce", Some("bounced"), Some("bounced")),
    ("open", Some("opened"), Some("opened")),
    ("click", Some("clicked"), Some("clicked")),
    ("reply", Some("replied"), None),
    ("complaint", Some("complained"), None),
    ("subscribe", None, Some("subscribed")),
    ("unsubscribe", Some("unsubscribed"), Some("unsubscribed")),
    ("global_unsubscribe", Some("unsubscribed"), Some("globally_unsubscribed")),
    ("global_resubscribe", None, Some("globally_resubscribed")),
    ("automation_unsubscribe", Some("unsubscribed"), Some("automation_unsubscribed")),
    ("purchase", None, Some("purchased")),
    ("create", None, Some("created")),
    ("import", None, Some("imported")),
];
const GROUPS: [(&str, &[&str]); 5] = [
    ("delivery", &["sent", "delivered", "bounced"]),
    ("engagement", &["opened", "clicked"]),
    (
        "subscription",
        &[
            "subscribed",
            "unsubscribed",
            "globally_unsubscribed",
            "globally_resubscribed",
            "automation_unsubscribed",
        ],
    ),
    ("commerce", &["purchased"]),
    ("lifecycle", &["created", "imported"]),
];

/// Publishes an event of each type, with the campaign `c`; the newest is the first of [`TYPES`]. An event's id is its type.
async fn publish_each_type(account: &Account<'_>, contact: &str) {
    let purchase = json!({
        "order_uuid": "o", "product_uuid": "p", "product_name": "Pro", "is_subscription": false,
    });
    let more = json!({ "contact_id": contact, "campaign_id": "c", "url": "https://a.example/", "purchase": purchase });
    let events = (1..).zip(TYPES).map(|(n, (raw, ..))| event(raw, raw, minutes_ago(n), &more));
    account.publish(&events.collect::<Vec<_>>()).await;
}

/// The 8 types, each alone; every other name is 400 `invalid_event_type`.
pub async fn each_type_of_the_campaign_stream(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    publish_each_type(&account, &contact).await;
    let raw_types = |wanted: &dyn Fn(&str) -> bool| -> Vec<&str> {
        TYPES.iter().filter(|(_, shown, _)| shown.is_some_and(wanted)).map(|(raw, ..)| *raw).collect()
    };
    let rows = account.campaign_has("c", &raw_types(&|_| true)).await;
    let types: Vec<&str> = rows.iter().filter_map(|row| row["type"].as_str()).collect();
    assert_eq!(types, TYPES.iter().filter_map(|(_, shown, _)| *shown).collect::<Vec<_>>());
    for name in ["sent", "delivered", "opened", "clicked", "replied", "bounced", "unsubscribed", "complained"]
    {
        account
            .has_rows(&path(Endpoint::Campaign, "c", &format!("type={name}")), &raw_types(&|t| t == name))
            .await;
    }
    for name in
        ["open", "Opened", "opened%20", "purchased", "subscribed", "globally_unsubscribed", "sent,opened"]
    {
        let reply = account.campaign("c", &format!("type={name}")).await;
        assert_eq!(
            (reply.status, &reply.body["error"]["code"]),
            (400, &json!("invalid_event_type")),
            "{name}"
        );
    }
}

/// The 13 types and 5 groups, alone and together; every other name is 422.
pub async fn each_type_and_group_of_the_contact_timeline(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    publish_each_type(&account, &contact).await;
    let raw_types = |wanted: &dyn Fn(&str) -> bool| -> Vec<String> {
        let raw = TYPES.iter().filter(|(.., shown)| shown.is_some_and(wanted)).map(|(raw, ..)| *raw);
        raw.map(crate::stack::shown_uuid).collect()
    };
    let has = async |query: &str, wanted: &dyn Fn(&str) -> bool| {
        let ids = raw_types(wanted);
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        account.has_rows(&path(Endpoint::Contact, &contact, query), &ids).await
    };
    let rows = has("", &|_| true).await;
    let types: Vec<&str> = rows.iter().filter_map(|row| row["event_type"].as_str()).collect();
    assert_eq!(types, TYPES.iter().filter_map(|(.., shown)| *shown).collect::<Vec<_>>());
    for (group, members) in GROUPS {
        has(&format!("type_group={group}"), &|name| members.contains(&name)).await;
        for (_, _, name) in TYPES {
            let Some(name) = name else { continue };
            let is_member = members.contains(&name);
            has(&format!("type={name}&type_group={group}"), &|t| t == name && is_member).await;
        }
    }
    for query in
        ["type=replied", "type=complained", "type=open", "type=Sent", "type_group=mail", "type_group=sent"]
    {
        let reply = account.contact(&contact, query).await;
        let (name, value) = query.split_once('=').expect("a pair");
        let message = format!("Invalid value '{value}' for filter '{name}'");
        let error = json!({ "code": "VALIDATION_ERROR", "message": message, "details": { name: [message] } });
        assert_eq!((reply.status, &reply.body["error"]), (422, &error));
    }
}

/// `contact_id` in either case; one that is unknown is empty, one that is no UUID is 400.
pub async fn one_contact_of_a_campaign(stack: &Stack) {
    let account = stack.account().await;
    let (jane, john) = (new_id(), new_id());
    let of = |contact: &str| json!({ "contact_id": contact, "campaign_id": "c" });
    account
        .publish(&[
            event("1", "open", minutes_ago(3), &of(&jane)),
            event("2", "open", minutes_ago(2), &of(&john)),
            event("3", "delivery", minutes_ago(1), &of(&jane)),
        ])
        .await;
    account.campaign_has("c", &["3", "2", "1"]).await;
    for (query, ids) in [
        (format!("contact_id={jane}"), &["3", "1"][..]),
        (format!("contact_id={}", jane.to_uppercase()), &["3", "1"]),
        (format!("contact_id={john}&type=opened"), &["2"]),
        (format!("contact_id={john}&type=sent"), &[]),
        (format!("contact_id={}", new_id()), &[]),
        ("contact_id=".to_owned(), &["3", "2", "1"]),
    ] {
        account.has_rows(&path(Endpoint::Campaign, "c", &query), ids).await;
    }
    let braced = format!("%7B{jane}%7D");
    for bad in ["jane", "1", &jane.replace('-', ""), &braced, &format!("{jane}0")] {
        let reply = account.campaign("c", &format!("contact_id={bad}")).await;
        assert_eq!((reply.status, &reply.body["error"]["code"]), (400, &json!("invalid_parameter")), "{bad}");
    }
}

/// RFC 3339 in all its forms: without a zone, a bare date, a `+` that became a space, with and without a fraction.
pub async fn bounds_of_the_campaign_stream(stack: &Stack) {
    let account = stack.account().await;
    let noon = noon(3);
    let day = noon.date_naive();
    let contact = new_id();
    let open = |id: &str, at| event(id, "open", at, &json!({ "contact_id": contact, "campaign_id": "c" }));
    let midnight = noon - TimeDelta::hours(12);
    let ms = TimeDelta::milliseconds;
    account
        .publish(&[
            open("1", midnight - ms(1)),
            open("2", midnight),
            open("3", noon),
            open("4", noon + ms(500)),
            open("5", noon + ms(999)),
            open("6", noon + ms(1000)),
            open("7", midnight + TimeDelta::days(1) - ms(1)),
            open("8", midnight + TimeDelta::days(1)),
        ])
        .await;
    account.has_total(&path(Endpoint::Campaign, "c", ""), 8).await;
    let at = |text: &str| format!("{day}T{text}");
    for (query, ids) in [
        (format!("from_date={day}"), "8765432"),
        (format!("to_date={day}"), "7654321"),
        (format!("from_date={day}&to_date={day}"), "765432"),
        (format!("from_date={}", at("12:00:00Z")), "876543"),
        (format!("to_date={}", at("12:00:00Z")), "54321"),
        (format!("from_date={0}&to_date={0}", at("12:00:00Z")), "543"),
        (format!("from_date={}", at("12:00:00.5Z")), "87654"),
        (format!("to_date={}", at("12:00:00.500Z")), "4321"),
        (format!("to_date={}", at("12:00:00.0Z")), "321"),
        (format!("from_date={}", at("12:00:00.000000001Z")), "87654"),
        (format!("to_date={}", at("12:00:00.499999999Z")), "321"),
        (format!("from_date={}", at("12:00:01")), "876"),
        (format!("from_date={}", at("14:00:01%2B02:00")), "876"),
        (format!("from_date={}", at("14:00:01+02:00")), "876"),
        (format!("from_date={}", at("14:00:01%2002:00")), "876"),
        (format!("from_date={}", at("04:30:01-07:30")), "876"),
        (format!("from_date={}", at("12:00:01z").to_lowercase()), "876"),
        (format!("from_date={}", exact(noon + ms(1000))), "876"),
        (format!("to_date={}", shown(noon - ms(1000))), "21"),
        (format!("from_date={day}&to_date={}", day.pred_opt().expect("a day before")), ""),
        (format!("from_date={}&to_date={}", at("12:00:01Z"), at("12:00:00Z")), ""),
        ("from_date=&to_date=".to_owned(), "87654321"),
        ("from_date=2000-01-01&to_date=2999-12-31".to_owned(), "87654321"),
        ("to_date=2000-01-01".to_owned(), ""),
    ] {
        let ids: Vec<&str> = ids.split("").filter(|id| !id.is_empty()).collect();
        account.has_rows(&path(Endpoint::Campaign, "c", &query), &ids).await;
    }
    for name in ["from_date", "to_date"] {
        for bad in [
            "soon",
            "2026-02-30",
            "2026-6-1",
            "20260601",
            "2026-06-01T12:00",
            "2026-06-01T24:00:00Z",
            "2026-06-01%2012:00:00Z",
            "2026-06-01T12:00:00.Z",
            "2026-06-01T12:00:00%2B2",
            "1750000000",
            "2026-06",
            "2026-06-01T12:00:00Z%20",
            "2026-13-01",
            "%FF",
        ] {
            let reply = account.campaign("c", &format!("{name}={bad}")).await;
            assert_eq!(
                (reply.status, &reply.body["error"]["code"]),
                (400, &json!("invalid_parameter")),
                "{name}={bad}"
            );
        }
    }
}

/// Whole UTC days, both inclusive; nothing but a real `YYYY-MM-DD` will do.
pub async fn bounds_of_the_contact_timeline(stack: &Stack) {
    let account = stack.account().await;
    let midnight = noon(3) - TimeDelta::hours(12);
    let contact = new_id();
    let open = |id: &str, occurred_at: &str| {
        let mut open = event(id, "open", midnight, &json!({ "contact_id": contact }));
        open["occurred_at"] = json!(occurred_at);
        open
    };
    let (before, day) = (noon(4).date_naive(), midnight.date_naive());
    let after = noon(2).date_naive();
    let ids: Vec<String> = (0..5).map(|_| new_id()).collect();
    account
        .publish(&[
            open(&ids[0], &format!("{before}T23:59:59.999Z")),
            open(&ids[1], &format!("{day}T00:00:00Z")),
            // The day is the one in UTC: this is still on it, and the one behind is not.
            open(&ids[2], &format!("{after}T01:59:59.999+02:00")),
            open(&ids[3], &format!("{day}T22:00:00-02:00")),
            open(&ids[4], &format!("{after}T12:00:00Z")),
        ])
        .await;
    for (query, expected) in [
        (format!("from={day}"), &[4, 3, 2, 1][..]),
        (format!("to={day}"), &[2, 1, 0]),
        (format!("from={day}&to={day}"), &[2, 1]),
        (format!("from={after}&to={after}"), &[4, 3]),
        (format!("from={before}&to={before}"), &[0]),
        (format!("from={after}&to={before}"), &[]),
        ("from=&to=".to_owned(), &[4, 3, 2, 1, 0]),
        ("from=0001-01-01&to=9999-12-31".to_owned(), &[4, 3, 2, 1, 0]),
    ] {
        let expected: Vec<&str> = expected.iter().map(|n| ids[*n].as_str()).collect();
        account.has_rows(&path(Endpoint::Contact, &contact, &query), &expected).await;
    }
    for name in ["from", "to"] {
        for bad in [
            "2026-02-30",
            "2026-6-20",
            "2026-06-20T00:00:00Z",
            "20.06.2026",
            "20260620",
            "2026-06-20%20",
            "today",
            "2026-00-10",
            "%2B2026-06-20",
            "2025-02-29",
        ] {
            let reply = account.contact(&contact, &format!("{name}={bad}")).await;
            let error = &reply.body["error"];
            assert_eq!((reply.status, &error["code"]), (422, &json!("VALIDATION_ERROR")), "{name}={bad}");
            assert!(error["details"][name][0].is_string(), "{error}");
        }
    }
}

/// Several bad values at once are one 422 that names them all; a bad one is refused even where the rest is empty.
pub async fn bad_values_are_refused(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    let reply = account.contact(&contact, "type=bogus&from=x&per_page=0&page=1").await;
    let details = reply.body["error"]["details"].as_object().cloned().unwrap_or_default();
    let mut names: Vec<&str> = details.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!((reply.status, names), (422, vec!["from", "per_page", "type"]));
    let reply = account.campaign("cmp_never", "from_date=2026-06-02&to_date=2026-06-01&page=0").await;
    assert_eq!((reply.status, &reply.body["error"]["code"]), (400, &json!("invalid_parameter")));
    assert_eq!(reply.body["error"].as_object().map(serde_json::Map::len), Some(2));
}

/// An unknown parameter is ignored, an empty one counts as absent, and the same value twice is one.
pub async fn empty_repeated_and_unknown_parameters(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    let more = json!({ "contact_id": contact, "campaign_id": "c" });
    account.publish(&[event("1", "open", minutes_ago(1), &more)]).await;
    account.campaign_has("c", &["1"]).await;
    account.contact_has(&contact, &["1"]).await;
    let campaign_queries = [
        "type=&page=&per_page=&contact_id=&from_date=&to_date=",
        "type=opened&type=opened&page=1&page=1",
        "type=&type=opened",
        "x=1&x=2&Type=bogus&from=bogus&type_group=bogus&&=",
        "type",
    ];
    for query in campaign_queries {
        account.has_rows(&path(Endpoint::Campaign, "c", query), &["1"]).await;
    }
    let contact_queries = [
        "type=&page=&per_page=&type_group=&from=&to=",
        "type=opened&type=opened&type_group=engagement&type_group=engagement",
        "x=1&x=2&from_date=bogus&to_date=bogus&contact_id=bogus",
    ];
    for query in contact_queries {
        account.has_total(&path(Endpoint::Contact, &contact, query), 1).await;
    }
}

/// 400 `invalid_parameter`, and 422 that names the parameter.
pub async fn a_parameter_twice_with_different_values(stack: &Stack) {
    let account = stack.account().await;
    let ids: [String; 2] = [new_id(), new_id()];
    let campaign_pairs = [
        ("page", "1", "2"),
        ("per_page", "1", "2"),
        ("type", "sent", "opened"),
        ("contact_id", &ids[0], &ids[1]),
        ("from_date", "2026-06-01", "2026-06-02"),
        ("to_date", "2026-06-01", "2026-06-02"),
    ];
    for (name, one, other) in campaign_pairs {
        let reply = account.campaign("cmp_never", &format!("{name}={one}&{name}={other}")).await;
        let code: &Value = &reply.body["error"]["code"];
        assert_eq!((reply.status, code), (400, &json!("invalid_parameter")), "{name}");
    }
    let contact_pairs = [
        ("page", "1", "2"),
        ("per_page", "1", "2"),
        ("type", "sent", "opened"),
        ("type_group", "delivery", "commerce"),
        ("from", "2026-06-01", "2026-06-02"),
        ("to", "2026-06-01", "2026-06-02"),
    ];
    for (name, one, other) in contact_pairs {
        let reply = account.contact(&ids[0], &format!("{name}={one}&{name}={other}")).await;
        assert_eq!(reply.status, 422, "{name}");
        assert!(reply.body["error"]["details"][name][0].is_string(), "{}", reply.body);
    }
}
