//! Events and their `send`, in either order.

use anyhow::ensure;
use serde_json::{Value, json};

use super::{event, minutes_ago, new_id};
use crate::eventually;
use crate::model::Endpoint;
use crate::stack::{Account, PATIENCE, Stack, path};

const SENT: &str = "sent@example.com";

/// A send of the message `m`, with all that a send can supply.
fn send(contact: &str) -> Value {
    let more = json!({
        "message_id": "m", "contact_id": contact, "email": SENT, "campaign_id": "c", "automation_id": "a",
        "list_id": "l", "step_id": "s",
    });
    event("send", "send", minutes_ago(30), &more)
}

/// The rows that three opens have once their send is there, and what they say themselves does not matter any more.
async fn are_complete(account: &Account<'_>, contact: &str) {
    let ids = ["nothing", "campaign", "contact", "send"];
    let path = path(Endpoint::Campaign, "c", "");
    eventually(PATIENCE, async || {
        let reply = account.get(&path).await;
        let rows = reply.body["data"]["events"].as_array().cloned().unwrap_or_default();
        let shown: Vec<&Value> = rows.iter().map(|row| &row["id"]).collect();
        ensure!(shown == ids, "the rows are {shown:?}");
        let is_joined =
            |row: &Value| row["contact_id"] == contact && row["email"] == SENT && row["step_id"] == "s";
        ensure!(rows.iter().all(is_joined), "{rows:#?}");
        Ok(())
    })
    .await;
    let rows = account.contact_has(contact, &ids).await;
    for row in rows {
        assert_eq!(row["campaign"], json!({ "uuid": "c", "name": null }), "{row}");
        assert_eq!(row["automation"], json!({ "uuid": "a", "name": null }), "{row}");
        assert_eq!(row["list"], Value::Null);
    }
}

fn opens(contact: &str) -> [Value; 3] {
    [
        event("contact", "open", minutes_ago(3), &json!({ "message_id": "m", "contact_id": contact })),
        event("campaign", "open", minutes_ago(2), &json!({ "message_id": "m", "campaign_id": "c" })),
        event("nothing", "open", minutes_ago(1), &json!({ "message_id": "m" })),
    ]
}

/// What has a contact or a campaign shows there at once; the rest, and the missing fields, when the send comes.
pub async fn opens_before_their_send(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    // Made once: a repeat has the same time.
    let (opens, send) = (opens(&contact), send(&contact));
    account.publish(&opens).await;
    let rows = account.campaign_has("c", &["campaign"]).await;
    assert_eq!([&rows[0]["contact_id"], &rows[0]["email"], &rows[0]["step_id"]], [&Value::Null; 3]);
    let rows = account.contact_has(&contact, &["contact"]).await;
    assert_eq!([&rows[0]["campaign"], &rows[0]["automation"]], [&Value::Null; 2]);
    account.settle().await;
    account.campaign_has("c", &["campaign"]).await;
    account.contact_has(&contact, &["contact"]).await;

    account.publish(std::slice::from_ref(&send)).await;
    are_complete(&account, &contact).await;
    // A row that was there is the same row: a filter by the contact finds all, and a repeat changes nothing.
    account.publish(&opens).await;
    account.publish(std::slice::from_ref(&send)).await;
    account.settle().await;
    are_complete(&account, &contact).await;
    let query = format!("type=opened&contact_id={contact}");
    account.has_rows(&path(Endpoint::Campaign, "c", &query), &["nothing", "campaign", "contact"]).await;
}

/// The same from the other side.
pub async fn a_send_before_what_follows_it(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    account.publish(&[send(&contact)]).await;
    account.settle().await;
    account.publish(&opens(&contact)).await;
    are_complete(&account, &contact).await;
}

/// A send supplies what is left out, and nothing else; a list only shows where lists do.
pub async fn what_an_event_says_itself_wins(stack: &Stack) {
    let account = stack.account().await;
    let (contact, other) = (new_id(), new_id());
    let own = json!({
        "message_id": "m", "contact_id": other, "email": "own@example.com", "campaign_id": "own",
        "automation_id": "own", "step_id": "own",
    });
    account.publish(&[event("own", "reply", minutes_ago(2), &own)]).await;
    account.publish(&[event("list", "unsubscribe", minutes_ago(1), &json!({ "message_id": "m" }))]).await;
    account.publish(&[send(&contact)]).await;
    account.settle().await;
    let rows = account.campaign_has("own", &["own"]).await;
    assert_eq!(
        [&rows[0]["contact_id"], &rows[0]["email"], &rows[0]["step_id"]],
        [&json!(other), &json!("own@example.com"), &json!("own")]
    );
    account.campaign_has("c", &["list", "send"]).await;
    let rows = account.contact_has(&contact, &["list", "send"]).await;
    assert_eq!((&rows[0]["list"]["uuid"], &rows[1]["list"]), (&json!("l"), &Value::Null));
    // It has no row of a type that the timeline shows, and yet it exists.
    account.has_total(&path(Endpoint::Contact, &other, ""), 0).await;
}

/// Without its send, an event of a message alone shows nowhere; another type of event of that message supplies nothing.
pub async fn an_event_that_waits_shows_nowhere_and_messages_of_others_do_not_join(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    let all = json!({ "message_id": "m", "contact_id": contact, "campaign_id": "c", "email": SENT });
    account
        .publish(&[
            event("waits", "open", minutes_ago(1), &json!({ "message_id": "m" })),
            event("delivery", "delivery", minutes_ago(2), &all),
            event(
                "upper",
                "send",
                minutes_ago(3),
                &json!({
                    "message_id": "M", "contact_id": contact, "campaign_id": "c",
                }),
            ),
        ])
        .await;
    account.settle().await;
    account.campaign_has("c", &["delivery", "upper"]).await;
    account.contact_has(&contact, &["delivery", "upper"]).await;
}
