//! A key sees nothing of another account: not by any route, parameter or method, not in a status, a header or a body.

use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use super::{event, minutes_ago, new_id};
use crate::client::{Client, Prefix, Reply, send};
use crate::model::Endpoint;
use crate::stack::{Account, Stack};

/// What differs from one request to the next anyway.
const PASSING_HEADERS: [&str; 5] =
    ["x-request-id", "date", "x-ratelimit-remaining", "x-ratelimit-reset", "x-backstamp-visible-until"];

/// Two queries of everything that a query may have, each with and without what is wrong.
const QUERIES: [&str; 24] = [
    "",
    "page=1",
    "page=7&per_page=3",
    "page=0",
    "per_page=101",
    "per_page=x",
    "type=sent",
    "type=subscribed",
    "type=nonsense",
    "type=sent&type=opened",
    "type_group=delivery",
    "type_group=x",
    "contact_id=00000000-0000-4000-8000-000000000000",
    "contact_id=x",
    "from_date=2026-01-01",
    "from_date=x",
    "to_date=2099-01-01T00:00:00Z",
    "to_date=x",
    "from=2026-01-01",
    "from=x",
    "to=2099-01-01",
    "to=x",
    "from_date=2099-01-01&to_date=2026-01-01&from=2099-01-01&to=2026-01-01",
    "unknown=%ff&=&&",
];

const METHODS: [Method; 8] = [
    Method::GET,
    Method::HEAD,
    Method::OPTIONS,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::TRACE,
];

/// An account in which something is: ids that are taken.
struct Secrets {
    campaign: String,
    contact: String,
    message: String,
}

/// Publishes something of everything, and returns once it shows.
async fn keep_secrets(account: &Account<'_>) -> Secrets {
    let secrets = Secrets { campaign: new_id(), contact: new_id(), message: new_id() };
    let more = json!({
        "contact_id": secrets.contact, "campaign_id": secrets.campaign, "list_id": "l", "automation_id": "a",
        "email": "a@example.com", "message_id": secrets.message,
    });
    account.publish(&[event("e", "send", minutes_ago(2), &more)]).await;
    account
        .refer(&[
            json!({ "kind": "campaign", "id": secrets.campaign, "name": "Secret" }),
            json!({ "kind": "contact", "id": secrets.contact, "email": "secret@example.com" }),
            json!({ "kind": "list", "id": "l", "name": "Secret" }),
            json!({ "kind": "automation", "id": "a", "name": "Secret" }),
        ])
        .await;
    account.campaign_has(&secrets.campaign, &["e"]).await;
    account.contact_has(&secrets.contact, &["e"]).await;
    account.settle().await;
    secrets
}

/// Another account's ids answer exactly as ids that nobody has, whoever asks: with a key of everything, one of nothing that is
/// needed, or none.
pub async fn what_is_anothers_answers_as_what_is_unknown(stack: &Stack) {
    // So many requests are over the usual limit.
    let stack = stack.another_door(&[("BACKSTAMP_RATE_LIMIT", "100000/min")]).await;
    let (account, other) = (stack.account().await, stack.account().await);
    let Secrets { campaign, contact, .. } = keep_secrets(&account).await;
    let writer = other.with_permissions(&["events:write"]).await;
    let stranger = Account::new(&stack, "nobody", "wbk_nothing");
    other
        .publish(&[event(
            "own",
            "open",
            minutes_ago(1),
            &json!({ "contact_id": new_id(), "campaign_id": "own" }),
        )])
        .await;
    other.campaign_has("own", &["own"]).await;
    for asker in [&other, &writer, &stranger] {
        // A key that is not enough is refused before anything is looked at, so a few queries will do.
        let queries = if asker.key == other.key { &QUERIES[..] } else { &QUERIES[..4] };
        for (endpoint, taken) in [(Endpoint::Campaign, &campaign), (Endpoint::Contact, &contact)] {
            for prefix in [Prefix::Short, Prefix::Long] {
                for query in queries {
                    for method in &METHODS {
                        let path = |id: &str| format!("{}?{query}", Client::path(endpoint, prefix, id));
                        compare(asker, method, path, taken, &[404, 400, 422, 405, 204, 401, 403]).await;
                    }
                }
            }
        }
        // As the contact of a campaign of one's own.
        for query in ["", "&page=2", "&type=sent", "&type=opened&from_date=2026-01-01", "&page=0"] {
            for method in [Method::GET, Method::HEAD] {
                let path = |id: &str| format!("/v1/campaigns/own/events?contact_id={id}{query}");
                compare(asker, &method, path, &contact, &[200, 400, 401, 403]).await;
            }
        }
    }
}

/// Asks for a taken id and for one that nobody has, and holds that the answers are the same.
async fn compare(
    asker: &Account<'_>,
    method: &Method,
    path: impl Fn(&str) -> String,
    taken: &str,
    statuses: &[u16],
) {
    let unknown = new_id();
    let mut answers = Vec::new();
    for id in [taken, &unknown] {
        let reply = send(asker.request(method.clone(), &path(id))).await.expect("an answer");
        answers.push(told(&reply, id));
        assert!(statuses.contains(&reply.status), "{method} {}: {} {}", path(id), reply.status, reply.body);
    }
    assert_eq!(answers[0], answers[1], "{method} {}", path(taken));
}

/// All that an answer tells, with the id that was asked for taken out: links repeat the query.
fn told(reply: &Reply, id: &str) -> (u16, Vec<(String, String)>, String) {
    (reply.status, lasting(&reply.headers, id), reply.body.to_string().replace(id, "ID"))
}

/// The headers but for those that differ from one request to the next.
fn lasting(headers: &HeaderMap, id: &str) -> Vec<(String, String)> {
    let lasting = headers.iter().filter(|(name, _)| !PASSING_HEADERS.contains(&name.as_str()));
    let mut lasting: Vec<_> = lasting
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().replace(id, "ID")))
        .collect();
    lasting.sort();
    lasting
}

/// Nor does another account's contact, list, automation, message or name come through what the account publishes itself.
pub async fn nothing_of_anothers_comes_through_ones_own(stack: &Stack) {
    let (account, other) = (stack.account().await, stack.account().await);
    let Secrets { contact, message, .. } = keep_secrets(&account).await;
    let own = json!({ "contact_id": contact, "campaign_id": "own", "list_id": "l", "automation_id": "a" });
    other.publish(&[event("o", "subscribe", minutes_ago(1), &own)]).await;
    let joined = json!({ "campaign_id": "own", "message_id": message });
    other.publish(&[event("p", "open", minutes_ago(1), &joined)]).await;
    let rows = other.contact_has(&contact, &["o"]).await;
    assert_eq!(rows[0]["list"], json!({ "uuid": "l", "name": null }));
    assert_eq!(rows[0]["automation"], json!({ "uuid": "a", "name": null }));
    let rows = other.campaign_has("own", &["p"]).await;
    assert_eq!((&rows[0]["contact_id"], &rows[0]["email"]), (&Value::Null, &Value::Null));
    let reply = other.campaign("own", &format!("contact_id={contact}")).await;
    assert_eq!((reply.status, &reply.body["meta"]["total"]), (200, &json!(0)));
    // And what the other publishes under the same ids changes nothing here.
    account.contact_has(&contact, &["e"]).await;
}

/// The intake refuses what names another account, whether there is such an account or not.
pub async fn the_intake_tells_nothing_of_other_accounts(stack: &Stack) {
    let (account, other) = (stack.account().await, stack.account().await);
    let Secrets { campaign, contact, .. } = keep_secrets(&account).await;
    for (path, fields) in [
        (
            "/v1/events",
            json!({
                "id": "x", "type": "open", "occurred_at": "2026-04-17T14:23:05Z", "contact_id": contact,
                "campaign_id": campaign,
            }),
        ),
        ("/v1/references", json!({ "kind": "campaign", "id": campaign, "name": "Stolen" })),
    ] {
        let mut answers = Vec::new();
        for name in [account.name.clone(), format!("{}_no", account.name), new_id()] {
            let mut body = fields.clone();
            body["account_id"] = json!(name);
            let reply = other.post(path, "application/json", body.to_string()).await;
            assert_eq!(reply.body["rejected"][0]["code"], "foreign_account", "{}", reply.body);
            answers.push(told(&reply, &name));
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    }
    account.settle().await;
    account.campaign_has(&campaign, &["e"]).await;
}
