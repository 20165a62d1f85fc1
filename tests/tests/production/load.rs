//! A little of everything that Backstamp is used for, again and again.

use std::time::Duration;

use backstamp_tests::contract::{event, minutes_ago, new_id};
use backstamp_tests::model::Endpoint;
use backstamp_tests::stack::{Account, Stack, path};
use serde_json::json;

/// How long to wait between two rounds: a machine that does other things too is to keep up.
const PAUSE: Duration = Duration::from_millis(200);

/// Publishes and reads until it is dropped.
pub(super) async fn run(stack: &Stack, account: &Account<'_>) {
    let contacts: Vec<String> = (0..20).map(|_| new_id()).collect();
    for round in 0_usize.. {
        one_round(stack, account, &contacts, round).await;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Every kind of outcome once.
pub(super) async fn one_round(stack: &Stack, account: &Account<'_>, contacts: &[String], round: usize) {
    let contact = &contacts[round % contacts.len()];
    let of = |n: usize| json!({ "contact_id": contacts[(round + n) % contacts.len()], "campaign_id": "cmp_load", "email": "jane@example.com" });
    let message = format!("msg_{}", new_id());
    let mut events: Vec<_> = (0..10)
        .map(|n| {
            let kind = ["send", "delivery", "open", "reply"][n % 4];
            event(&new_id(), kind, minutes_ago(1), &of(n))
        })
        .collect();
    // A repeat; one that waits for its send, and the send; a list-management click; one that is past retention.
    events.push(events[0].clone());
    events.push(event(&new_id(), "open", minutes_ago(1), &json!({ "message_id": message })));
    let mut sent = of(0);
    sent["message_id"] = json!(message);
    let mut click = of(1);
    click["url"] = json!("https://links.example/u/1");
    click["link"] = json!("unsubscribe");
    events.push(event(&new_id(), "click", minutes_ago(1), &click));
    events.push(event(&new_id(), "open", minutes_ago(60 * 24 * 400), &of(2)));
    account.publish(&events).await;
    account.publish(&[event(&new_id(), "send", minutes_ago(2), &sent)]).await;
    // One that is no event, and one over HTTP that is.
    if let Some(topics) = stack.topics() {
        topics.publish("mail.events", None, br#"{"type":"opened"}"#, None).await;
    }
    let posted = event(&new_id(), "open", minutes_ago(1), &of(3)).to_string();
    account.post("/v1/events", "application/json", posted).await;
    account.post("/v1/events", "application/json", "[{}]").await;
    account.refer(&[json!({ "kind": "campaign", "id": "cmp_load", "name": "Load" })]).await;
    for asked in [
        path(Endpoint::Campaign, "cmp_load", ""),
        path(Endpoint::Campaign, "cmp_load", "page=2&per_page=3"),
        path(Endpoint::Campaign, "cmp_load", &format!("contact_id={contact}")),
        path(Endpoint::Contact, contact, ""),
        path(Endpoint::Contact, &new_id(), ""),
        path(Endpoint::Contact, contact, "page=0"),
    ] {
        account.get(&asked).await;
    }
}
