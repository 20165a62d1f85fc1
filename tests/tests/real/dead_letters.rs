//! Messages that are no events, and no references: each goes to `mail.events.dead` as it came, and holds nothing up.

use std::collections::BTreeMap;

use backstamp_tests::contract::fixtures::{Bad, bad};
use backstamp_tests::contract::{event, minutes_ago, new_id};
use backstamp_tests::eventually;
use backstamp_tests::kafka::Record;
use backstamp_tests::model::Endpoint;
use backstamp_tests::stack::{Account, PATIENCE, Stack, path};
use serde_json::json;

const EVENTS: &str = "mail.events";
const REFERENCES: &str = "mail.references";
const DEAD: &str = "mail.events.dead";
const PARTITION: i32 = 1;

/// Waits for a letter of each place, and returns the first of each: dead letters are at least once.
async fn letters(stack: &Stack, topic: &str, places: &[(i32, i64)]) -> BTreeMap<(i32, i64), Record> {
    let topics = stack.topics().unwrap();
    let place = |letter: &Record| {
        let number = |name: &str| letter.header(name)?.parse::<i64>().ok();
        let partition = i32::try_from(number("backstamp.partition")?).ok()?;
        (letter.header("backstamp.topic")? == topic).then_some((partition, number("backstamp.offset")?))
    };
    eventually(PATIENCE, async || {
        let mut letters = BTreeMap::new();
        for letter in topics.consume_all(DEAD).await {
            if let Some(place) = place(&letter) {
                letters.entry(place).or_insert(letter);
            }
        }
        let missing: Vec<_> = places.iter().filter(|place| !letters.contains_key(place)).collect();
        anyhow::ensure!(missing.is_empty(), "no letters from {missing:?} of {topic}");
        Ok(letters)
    })
    .await
}

fn is_the_letter_of(letter: &Record, example: &Bad, key: Option<&[u8]>) {
    let name = &example.name;
    assert_eq!(letter.payload.as_deref().unwrap_or_default(), example.message, "{name}");
    assert_eq!(letter.key.as_deref(), key, "{name}");
    assert_eq!(letter.header("backstamp.code"), Some(example.code.as_str()), "{name}");
    let message = letter.header("backstamp.message").unwrap_or_default();
    assert!(!message.is_empty(), "{name}");
    if let Some(field) = &example.field {
        assert!(message.contains(&format!("'{field}'")), "{name} is at fault for {field}: {message}");
    }
    let mut headers: Vec<&str> = letter.headers.iter().map(|(name, _)| name.as_str()).collect();
    headers.sort_unstable();
    let expected =
        ["code", "message", "offset", "partition", "topic"].map(|name| format!("backstamp.{name}"));
    assert_eq!(headers, expected, "{name}");
}

#[tokio::test]
async fn a_bad_event_is_dead_lettered_as_it_came_and_holds_nothing_up() {
    let stack = Stack::shared_real().await;
    let account = stack.account().await;
    let topics = stack.topics().unwrap();
    let contact = new_id();
    // Each bad one between two good ones of its partition.
    let good = async |n: i64| {
        let mut open = event(
            &format!("good_{n:03}"),
            "open",
            minutes_ago(1000 - n),
            &json!({ "contact_id": contact, "campaign_id": "between" }),
        );
        open["account_id"] = json!(account.name);
        topics.publish(EVENTS, Some(b"between"), open.to_string().as_bytes(), Some(PARTITION)).await;
    };
    let mut sent = Vec::new();
    let mut count = 0;
    // Another account's is no fault without a key that says whose it is.
    let examples = bad("events").into_iter().filter(|example| example.code != "foreign_account");
    for (n, example) in (0..).zip(examples) {
        good(n).await;
        count += 1;
        let key = (n % 2 == 0).then_some(&b"a key of any kind"[..]);
        let place = topics.publish(EVENTS, key, &example.message, Some(PARTITION)).await;
        sent.push((place, example, key));
    }
    good(count).await;
    count += 1;
    account.has_total(&path(Endpoint::Campaign, "between", ""), count.unsigned_abs()).await;
    account.has_total(&path(Endpoint::Contact, &contact, ""), count.unsigned_abs()).await;
    let places: Vec<_> = sent.iter().map(|(place, ..)| *place).collect();
    let letters = letters(stack, EVENTS, &places).await;
    for (place, example, key) in &sent {
        is_the_letter_of(&letters[place], example, *key);
    }
    // The offsets are committed beyond all of it.
    account.settle().await;
    let committed = topics.committed(stack.group(), EVENTS).await;
    assert!(committed[&PARTITION] > places.iter().map(|(_, offset)| *offset).max().unwrap());
}

#[tokio::test]
async fn a_bad_reference_is_dead_lettered_as_it_came_and_holds_nothing_up() {
    let stack = Stack::shared_real().await;
    let account: Account<'_> = stack.account().await;
    let topics = stack.topics().unwrap();
    let good = async |n: usize| {
        let id = format!("cmp_{n}");
        let key = format!("campaign:{}:{id}", account.name);
        let value = json!({ "kind": "campaign", "account_id": account.name, "id": id, "name": "Good" });
        topics.publish(REFERENCES, Some(key.as_bytes()), value.to_string().as_bytes(), Some(PARTITION)).await;
    };
    let mut sent = Vec::new();
    // Nor is a message without a key: a compacted topic does not take one.
    let examples = bad("references")
        .into_iter()
        .filter(|example| example.code != "foreign_account" && example.key.is_some());
    for (n, example) in examples.enumerate() {
        good(n).await;
        let key = example.key.as_deref().map(str::as_bytes);
        let place = topics.publish(REFERENCES, key, &example.message, Some(PARTITION)).await;
        sent.push((place, example));
    }
    good(sent.len()).await;
    for n in 0..=sent.len() {
        account.has_total(&path(Endpoint::Campaign, &format!("cmp_{n}"), ""), 0).await;
    }
    let places: Vec<_> = sent.iter().map(|(place, _)| *place).collect();
    let letters = letters(stack, REFERENCES, &places).await;
    for (place, example) in &sent {
        is_the_letter_of(&letters[place], example, example.key.as_deref().map(str::as_bytes));
    }
    account.settle().await;
    let committed = topics.committed(&format!("{}.references", stack.group()), REFERENCES).await;
    assert!(committed[&PARTITION] > places.iter().map(|(_, offset)| *offset).max().unwrap());
}
