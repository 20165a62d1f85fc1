//! Names and addresses from references, whether they came before the events or after.

use anyhow::ensure;
use serde_json::{Value, json};

use super::{event, minutes_ago, new_id};
use crate::eventually;
use crate::model::Endpoint;
use crate::stack::{Account, PATIENCE, Stack, path};

/// Waits until the newest row of a contact has these names of its campaign, automation and list.
async fn has_names(account: &Account<'_>, contact: &str, names: [&Value; 3]) {
    let path = path(Endpoint::Contact, contact, "");
    eventually(PATIENCE, async || {
        let reply = account.get(&path).await;
        let row = &reply.body["data"][0];
        let shown = ["campaign", "automation", "list"].map(|kind| &row[kind]["name"]);
        ensure!(shown == names, "the names are {shown:?}, and expected are {names:?}: {}", reply.body);
        Ok(())
    })
    .await;
}

/// Waits until the only row of a campaign has this address.
async fn has_email(account: &Account<'_>, campaign: &str, email: &Value) {
    let path = path(Endpoint::Campaign, campaign, "");
    eventually(PATIENCE, async || {
        let reply = account.get(&path).await;
        let row = &reply.body["data"]["events"][0];
        ensure!(row.is_object() && row["email"] == *email, "expected is {email}: {}", reply.body);
        Ok(())
    })
    .await;
}

/// `null` while no name is known; then the name, before and after the event; then the new name.
pub async fn names_are_current_whatever_came_first(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    let campaign = new_id();
    let refer = async |kind: &str, id: &str, name: &Value| {
        account.refer(&[json!({ "kind": kind, "id": id, "name": name })]).await;
    };
    // A reference before its event …
    refer("automation", "a:1", &json!("Welcome series")).await;
    account.settle().await;
    let more =
        json!({ "contact_id": contact, "campaign_id": campaign, "automation_id": "a:1", "list_id": "l" });
    account.publish(&[event("1", "subscribe", minutes_ago(1), &more)]).await;
    account.contact_has(&contact, &["1"]).await;
    let welcome = json!("Welcome series");
    has_names(&account, &contact, [&Value::Null, &welcome, &Value::Null]).await;
    // … and behind it, under the id in the other case, and one without a name.
    refer("campaign", &campaign.to_uppercase(), &json!("Spring Sale")).await;
    refer("list", "l", &Value::Null).await;
    let spring = json!("Spring Sale");
    has_names(&account, &contact, [&spring, &welcome, &Value::Null]).await;
    refer("list", "l", &json!("")).await;
    refer("campaign", &campaign, &json!("Sommer ☀ “Sale”")).await;
    let summer = json!("Sommer ☀ “Sale”");
    has_names(&account, &contact, [&summer, &welcome, &json!("")]).await;
    // Another kind's id is another.
    refer("campaign", "l", &json!("not the list")).await;
    account.settle().await;
    has_names(&account, &contact, [&summer, &welcome, &json!("")]).await;
}

/// A deleted reference's last name stays, and a name that was never known is `null`.
pub async fn a_deleted_references_last_name_stays(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    let more = json!({ "contact_id": contact, "campaign_id": "c", "automation_id": "a", "list_id": "l" });
    account
        .refer(&[
            json!({ "kind": "campaign", "id": "c", "name": "Spring" }),
            json!({ "kind": "automation", "id": "a", "name": "Welcome" }),
        ])
        .await;
    account.settle().await;
    // One deleted before its event came, one behind it, and one that never had a name.
    account.refer(&[json!({ "kind": "automation", "id": "a", "deleted": true })]).await;
    account.settle().await;
    account.publish(&[event("1", "subscribe", minutes_ago(1), &more)]).await;
    account.contact_has(&contact, &["1"]).await;
    account
        .refer(&[
            json!({ "kind": "campaign", "id": "c", "deleted": true }),
            json!({ "kind": "list", "id": "l", "deleted": true }),
        ])
        .await;
    account.settle().await;
    let (spring, welcome) = (json!("Spring"), json!("Welcome"));
    has_names(&account, &contact, [&spring, &welcome, &Value::Null]).await;
    account.refer(&[json!({ "kind": "campaign", "id": "c", "name": "Again" })]).await;
    has_names(&account, &contact, [&json!("Again"), &welcome, &Value::Null]).await;
}

/// The event's own; else its `send`'s; else the latest of the contact's reference; else `null`.
pub async fn the_email_is_the_events_or_the_sends_or_the_references(stack: &Stack) {
    let account = stack.account().await;
    let contact = new_id();
    let send = |message: &str, email: &Value| {
        let more =
            json!({ "contact_id": contact, "message_id": message, "email": email, "campaign_id": message });
        event(&format!("send_{message}"), "send", minutes_ago(9), &more)
    };
    let open = |campaign: &str, more: Value| {
        let mut open = event(&format!("open_{campaign}"), "open", minutes_ago(1), &more);
        open["campaign_id"] = json!(campaign);
        open
    };
    account.publish(&[send("m1", &json!("sent@example.com")), send("m2", &Value::Null)]).await;
    account
        .publish(&[
            open("own", json!({ "message_id": "m1", "email": "own@example.com" })),
            open("sent", json!({ "message_id": "m1" })),
            open("bare_send", json!({ "message_id": "m2" })),
            open("bare", json!({ "contact_id": contact })),
        ])
        .await;
    let expect = async |emails: [(&str, &Value); 4]| {
        for (campaign, email) in emails {
            has_email(&account, campaign, email).await;
        }
    };
    let (own, sent, none) = (json!("own@example.com"), json!("sent@example.com"), Value::Null);
    expect([("own", &own), ("sent", &sent), ("bare_send", &none), ("bare", &none)]).await;
    for email in ["First@example.com", "now@example.com"] {
        account.refer(&[json!({ "kind": "contact", "id": contact, "email": email })]).await;
        account.settle().await;
        let email = json!(email);
        expect([("bare", &email), ("bare_send", &email), ("sent", &sent), ("own", &own)]).await;
    }
}
