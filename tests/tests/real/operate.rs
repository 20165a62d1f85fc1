//! The operator's tools, by their commands, on the real servers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::ensure;
use backstamp_tests::client::{Client, send};
use backstamp_tests::contract::{event, minutes_ago, new_id};
use backstamp_tests::deployment::{Deployment, EVENTS};
use backstamp_tests::model::Endpoint;
use backstamp_tests::program::{Output, Program};
use backstamp_tests::stack::{PATIENCE, PERMISSIONS, Stack, path};
use backstamp_tests::{eventually, servers, unique_name};
use reqwest::Method;
use serde_json::{Value, json};

fn report(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {output}"))
}

/// The findings of a check about a thing.
fn findings<'a>(report: &'a Value, about: &str) -> Vec<&'a Value> {
    let all = report["findings"].as_array().unwrap();
    all.iter().filter(|finding| finding["about"].as_str().unwrap().ends_with(about)).collect()
}

#[tokio::test]
async fn check_says_what_is_wrong_and_how_to_mend_it() {
    let stack = Stack::shared_real().await;
    // Kafka tells of a new topic a little later.
    let output = eventually(PATIENCE, async || {
        let output = stack.run(&["check", "--json", "--group", stack.group()]).await;
        ensure!(output.status.success(), "{output}");
        Ok(output)
    })
    .await;
    let well = report(&output);
    assert_eq!((&well["ok"], &well["errors"]), (&json!(true), &json!(0)), "{output}");
    for about in ["schema", "permissions", "clock scylla", "mail.events write", "mail.campaign-events read"] {
        let found = findings(&well, about);
        assert!(found.len() == 1 && found[0]["level"] == "ok", "{about}: {output}");
    }
    // One broker and one node: what one of them can lose is a warning.
    for about in ["kafka", "scylla"] {
        assert_eq!(findings(&well, about)[0]["level"], "warning", "{output}");
    }
    // Nothing was written by it.
    let topics = stack.topics().unwrap();
    let before = topics.ends("mail.events.dead").await;
    let lines = stack.run(&["check"]).await;
    assert!(lines.stdout.lines().any(|line| line.starts_with("ok ") && line.contains("schema")), "{lines}");
    assert_eq!(topics.ends("mail.events.dead").await, before);

    let longer = stack.run(&["check", "--json", "--retention-days", "400"]).await;
    assert_eq!(longer.status.code(), Some(1), "{longer}");
    let wrong = report(&longer);
    let events = findings(&wrong, "mail.events");
    assert!(events.iter().any(|finding| finding["level"] == "error"), "{longer}");
    assert!(events[0]["mend"].as_str().unwrap().contains("retention.ms=34560000000"), "{longer}");

    let elsewhere = ["check", "--json", "--topic-prefix", "nobody.", "--keyspace", "nobody"];
    let missing = stack.run(&elsewhere).await;
    assert_eq!(missing.status.code(), Some(1), "{missing}");
    let wrong = report(&missing);
    for about in ["nobody.mail.references", "keyspace nobody", "schema"] {
        let found = findings(&wrong, about);
        assert!(found[0]["mend"].as_str().unwrap().contains("backstamp schema apply"), "{missing}");
    }
    let away = stack.run(&["check", "--json", "--kafka-brokers", "127.0.0.1:1"]).await;
    assert_eq!(findings(&report(&away), "kafka")[0]["level"], "error", "{away}");
}

#[tokio::test]
async fn a_dead_letter_is_retried_once_whoever_asks_and_whatever_crashed() {
    let stack = Stack::shared_real().await;
    let account = stack.account().await;
    let topics = stack.topics().unwrap();
    let contact = new_id();
    // One that is a little too far ahead yet, and one that is never an event.
    let ahead = chrono::Utc::now() + chrono::TimeDelta::hours(24) + chrono::TimeDelta::seconds(4);
    let mut soon =
        event("soon", "open", minutes_ago(1), &json!({ "contact_id": contact, "campaign_id": "c" }));
    soon["occurred_at"] = json!(ahead.to_rfc3339());
    let never = event("never", "nonsense", minutes_ago(1), &json!({ "contact_id": contact }));
    account.publish(&[soon, never]).await;

    let letters = async |arguments: &[&str]| {
        let base = ["dead-letters", arguments[0], "--json", "--account", account.name.as_str()];
        stack.run(&[&base, &arguments[1..]].concat()).await
    };
    let listed = eventually(PATIENCE, async || {
        let output = letters(&["list"]).await;
        ensure!(output.status.success(), "{output}");
        let listed = report(&output).as_array().unwrap().clone();
        ensure!(listed.len() == 2, "{output}");
        Ok(listed)
    })
    .await;
    let place_of = |code: &str| {
        let letter = listed.iter().find(|letter| letter["code"] == code);
        letter.unwrap_or_else(|| panic!("no {code} in {listed:?}"))["place"].as_str().unwrap().to_owned()
    };
    let (soon, never) = (place_of("time_ahead"), place_of("unknown_type"));
    let only = report(&letters(&["list", "--code", "unknown_type", "--since", "1h"]).await);
    assert_eq!(only.as_array().unwrap().len(), 1, "{only}");
    assert_eq!(report(&letters(&["list", "--until", "1h"]).await), json!([]));
    let shown = report(&letters(&["show", &never]).await);
    assert!(shown["value"].as_str().unwrap().contains("nonsense"), "{shown}");
    assert!(!letters(&["show", "mail.events/0/999999999"]).await.status.success());
    let whole = stack.run(&["dead-letters", "retry"]).await;
    assert!(!whole.status.success() && whole.stderr.contains("which letters"), "{whole}");

    // Nothing is sent before the time has come, and nothing by a dry run.
    let dry = eventually(PATIENCE, async || {
        let output = letters(&["retry", "--dry-run"]).await;
        let dry = report(&output);
        ensure!(dry["accepted"] == 1, "{output}");
        Ok(dry)
    })
    .await;
    assert_eq!(dry["refused"], 1, "{dry}");
    assert_eq!(report(&letters(&["list"]).await).as_array().unwrap().len(), 2);

    let sent = async || {
        let records = topics.consume_all(EVENTS).await;
        records.iter().filter(|record| record.header("backstamp.retried") == Some(&soon)).count()
    };
    // Two at once.
    let (one, other) = tokio::join!(letters(&["retry"]), letters(&["retry"]));
    let retried = |output: &Output| report(output)["retried"].as_u64().unwrap_or(0);
    assert_eq!(retried(&one) + retried(&other), 1, "{one} {other}");
    account.campaign_has("c", &["soon"]).await;
    assert_eq!(sent().await, 1);
    let again = report(&letters(&["retry"]).await);
    assert_eq!((&again["retried before"], &again["refused"]), (&json!(1), &json!(1)), "{again}");

    // A run that ended before it could say that the message was sent: the next looks for it in the topic.
    let keyspace =
        stack.environment().into_iter().find(|(name, _)| *name == "BACKSTAMP_KEYSPACE").unwrap().1.to_owned();
    let session = servers::cassandra().await.session().await;
    let forget =
        format!("UPDATE {keyspace}.dead_letters SET state = 'retrying', at = 0 WHERE place = ? IF EXISTS");
    session.query_unpaged(forget, (soon.as_str(),)).await.unwrap();
    // All of the topic's records since 1970 are looked at then.
    let again = report(&letters(&["retry"]).await);
    assert_eq!(again["retried before"], 1, "{again}");
    assert_eq!(sent().await, 1);
    // One that ended before it sent: the next sends.
    let claim = format!(
        "INSERT INTO {keyspace}.dead_letters (place, state, run, at) VALUES (?, 'retrying', uuid(), 0) IF NOT EXISTS"
    );
    session.query_unpaged(claim, (never.as_str(),)).await.unwrap();
    let again = letters(&["retry", "--refused-too", &never]).await;
    assert_eq!(report(&again)["retried"], 1, "{again}");

    // Refused again, it is another letter, which is dropped.
    let listed = eventually(PATIENCE, async || {
        let listed = report(&letters(&["list"]).await).as_array().unwrap().clone();
        ensure!(listed.len() == 1, "{listed:?}");
        Ok(listed)
    })
    .await;
    assert_ne!(listed[0]["place"], never);
    let dropped = letters(&["drop", "--code", "unknown_type"]).await;
    assert_eq!(report(&dropped)["dropped"], 1, "{dropped}");
    assert_eq!(report(&letters(&["list"]).await), json!([]));
    let all = report(&letters(&["list", "--all"]).await);
    let mut states: Vec<&str> =
        all.as_array().unwrap().iter().map(|letter| letter["state"].as_str().unwrap()).collect();
    states.sort_unstable();
    assert_eq!(states, ["dropped", "retried", "retried"], "{all}");
    account.campaign_has("c", &["soon"]).await;
}

#[tokio::test]
async fn the_ledger_is_proved_and_mended_and_an_event_is_explained() {
    let deployment = Deployment::new().await;
    let ingest = deployment.ingest().await;
    let environment: Vec<(&str, &str)> = deployment.environment();
    let account = unique_name("acc");
    let topics = &deployment.topics;
    let publish = async |id: &str, kind: &str, minutes: i64, more: Value| {
        let mut record = event(id, kind, minutes_ago(minutes), &more);
        record["account_id"] = json!(account);
        topics.publish(EVENTS, Some(id.as_bytes()), record.to_string().as_bytes(), None).await
    };
    let contacts: Vec<String> = (0..5).map(|_| new_id()).collect();
    for n in 0..300 {
        let more = json!({ "contact_id": contacts[n as usize % 5], "campaign_id": "c" });
        publish(&format!("e{n:03}"), "open", 1000 - n, more).await;
    }
    publish("waits", "open", 2, json!({ "message_id": "m" })).await;
    publish("bad", "nonsense", 2, json!({ "contact_id": contacts[0] })).await;
    let leave = json!({ "contact_id": contacts[0], "campaign_id": "c", "url": "https://a.example/u", "link": "unsubscribe" });
    publish("leaves", "click", 2, leave).await;
    deployment.wait_until_done().await;

    let run = async |arguments: &[&str]| Program::run(arguments, &environment).await;
    let of_campaign = ["reconcile", "--json", "--account", &account, "--campaign", "c"];
    let of_contact = ["reconcile", "--json", "--account", &account, "--contact", &contacts[0]];
    let of_log = ["reconcile", "--json", "--since", "1h"];
    for arguments in [&of_campaign[..], &of_contact, &of_log, &["reconcile", "--json", "--every"]] {
        let output = run(arguments).await;
        assert!(output.status.success() && report(&output)["differences"] == json!([]), "{output}");
    }
    let looked_at = report(&run(&of_log).await)["looked_at"].clone();
    for (what, count) in [
        ("events", 300),
        ("events that wait for their send", 1),
        ("dead letters", 1),
        ("list-management clicks", 1),
        ("rows looked for", 600),
        ("timelines", 6),
    ] {
        assert_eq!(looked_at[what], count, "{what}: {looked_at}");
    }

    // A node of the tree is lost.
    let keyspace = environment.iter().find(|(name, _)| *name == "BACKSTAMP_KEYSPACE").unwrap().1;
    let session = servers::cassandra().await.session().await;
    let cell =
        format!("{keyspace}.tallies WHERE account_id = '{account}' AND subject = 'campaign:c' AND cell = 1");
    let written = session.query_unpaged(format!("SELECT WRITETIME(bytes) FROM {cell}"), ()).await;
    let (stamp,) = written.unwrap().into_rows_result().unwrap().single_row::<(i64,)>().unwrap();
    let lose = cell.replace(" WHERE", &format!(" USING TIMESTAMP {stamp} WHERE"));
    session.query_unpaged(format!("DELETE FROM {lose}"), ()).await.unwrap();
    let output = run(&of_campaign).await;
    assert_eq!(output.status.code(), Some(1), "{output}");
    let differences = report(&output)["differences"].clone();
    assert_eq!(differences[0]["level"], "root/node", "{output}");
    let mended = run(&[&of_campaign[..], &["--repair"]].concat()).await;
    assert!(mended.status.success() && report(&mended)["mended"] == differences, "{mended}");
    assert!(run(&of_campaign).await.status.success());

    // An offset is committed that was not done.
    ingest.sigterm_and_wait().await;
    let more = json!({ "contact_id": contacts[1], "campaign_id": "c" });
    let (partition, offset) = publish("skipped", "open", 3, more).await;
    let group = environment.iter().find(|(name, _)| *name == "BACKSTAMP_GROUP").unwrap().1;
    topics.commit(group, EVENTS, partition, offset + 1).await;
    let ingest = deployment.ingest().await;
    let output = run(&of_log).await;
    assert_eq!(output.status.code(), Some(1), "{output}");
    let differences = report(&output)["differences"].as_array().unwrap().clone();
    assert_eq!(differences.len(), 2, "{output}");
    assert!(differences.iter().all(|difference| difference["level"] == "log/rows"), "{output}");
    let skipped = report(&run(&["explain", "skipped", "--account", &account, "--json"]).await);
    assert!(
        skipped["messages"][0]["shows"][0]["state"].as_str().unwrap().starts_with("missing"),
        "{skipped}"
    );
    let mended = run(&[&of_log[..], &["--repair"]].concat()).await;
    assert!(mended.status.success(), "{mended}");
    assert_eq!(report(&mended)["mended"].as_array().unwrap().len(), 2, "{mended}");
    assert!(run(&of_log).await.status.success());

    // What became of each event.
    let explain = async |id: &str| {
        let output = run(&["explain", id, "--account", &account, "--since", "1h", "--json"]).await;
        assert!(output.status.success(), "{output}");
        report(&output)["messages"].as_array().unwrap().clone()
    };
    for (id, outcome) in
        [("waits", "waiting"), ("bad", "dead-lettered"), ("leaves", "filtered"), ("e000", "projected")]
    {
        let told = explain(id).await;
        assert_eq!((told.len(), &told[0]["outcome"]), (1, &json!(outcome)), "{told:?}");
    }
    assert!(explain("bad").await[0]["dead_letter"].as_str().unwrap().starts_with("mail.events.dead/"));
    assert_eq!(explain("skipped").await.len(), 2);
    let (query, client) = deployment.query().await;
    let key = Program::create_key(&account, &PERMISSIONS, &environment).await;
    for id in ["e000", "e123", "skipped"] {
        let told = explain(id).await;
        let shows = told[0]["shows"].as_array().unwrap();
        assert_eq!(shows.len(), 2, "{told:?}");
        for row in shows {
            let rows = page(&client, &key, row["path"].as_str().unwrap()).await;
            let place = usize::try_from(row["place_on_page"].as_u64().unwrap()).unwrap();
            let there = &rows[place - 1];
            let shown = there["id"].as_str().or(there["uuid"].as_str()).unwrap();
            assert!(shown == id || shown == backstamp_tests::stack::shown_uuid(id), "{row} shows {there}");
        }
    }
    let nothing = run(&["explain", "nobody", "--account", &account]).await;
    assert_eq!(nothing.status.code(), Some(1), "{nothing}");
    drop((query, ingest));
    deployment.remove().await;
}

#[tokio::test]
async fn a_contact_is_forgotten_and_stays_so() {
    let deployment = Deployment::new().await;
    let ingest = deployment.ingest().await;
    let environment: Vec<(&str, &str)> = deployment.environment();
    let account = unique_name("acc");
    let topics = &deployment.topics;
    let contacts: Vec<String> = (0..4).map(|_| new_id()).collect();
    let publish = async |id: &str, kind: &str, minutes: i64, more: Value| {
        let mut record = event(id, kind, minutes_ago(minutes), &more);
        record["account_id"] = json!(account);
        topics.publish(EVENTS, None, record.to_string().as_bytes(), None).await;
    };
    let of_contact =
        |n: usize| json!({ "contact_id": contacts[n % 4], "campaign_id": "c", "email": "a@b.example" });
    for n in 0..200 {
        publish(&format!("e{n:03}"), "open", 1000 - n, of_contact(n as usize)).await;
    }
    let mut sent = of_contact(0);
    sent["message_id"] = json!("m");
    publish("sent", "send", 700, sent).await;
    publish("joins", "open", 600, json!({ "message_id": "m" })).await;
    let mut waits = of_contact(0);
    waits["message_id"] = json!("never");
    publish("waits", "open", 600, waits).await;
    let reference =
        json!({ "kind": "contact", "account_id": account, "id": contacts[0], "email": "a@b.example" });
    let key = format!("contact:{account}:{}", contacts[0]);
    let refer = async || {
        topics.publish("mail.references", Some(key.as_bytes()), reference.to_string().as_bytes(), None).await
    };
    refer().await;
    deployment.wait_until_done().await;

    let (query, client) = deployment.query().await;
    let api_key = Program::create_key(&account, &PERMISSIONS, &environment).await;
    let totals = async || {
        let mut totals = Vec::new();
        for path in [
            path(Endpoint::Campaign, "c", ""),
            path(Endpoint::Contact, &contacts[0], ""),
            path(Endpoint::Contact, &contacts[1], ""),
        ] {
            let reply = send(client.request(Method::GET, &path).bearer_auth(&api_key)).await.unwrap();
            assert_eq!(reply.status, 200, "{path}: {}", reply.body);
            totals.push(
                reply.body["meta"]["total"].as_u64().or(reply.body["pagination"]["total"].as_u64()).unwrap(),
            );
        }
        totals
    };
    assert_eq!(totals().await, [203, 53, 50]);
    let run = async |arguments: &[&str]| {
        let output = Program::run(arguments, &environment).await;
        assert!(output.status.success(), "{output}");
        report(&output)
    };
    let forget = ["forget-contact", "--json", "--account", &account, "--contact", &contacts[0]];
    let would = run(&[&forget[..], &["--dry-run"]].concat()).await;
    assert_eq!(would["would_erase"]["contact_rows"], 53, "{would}");
    assert_eq!(totals().await, [203, 53, 50]);
    let receipt = run(&forget).await;
    let erased = json!({ "contact_rows": 53, "campaign_rows": 53, "campaigns": 1 });
    assert_eq!(receipt["erased"], erased, "{receipt}");
    assert_eq!(
        (&receipt["sends_without_address"], &receipt["waiting_events_erased"]),
        (&json!(1), &json!(1)),
        "{receipt}"
    );
    assert_eq!(receipt["digest"].as_str().unwrap().len(), 64, "{receipt}");
    assert_eq!(totals().await, [150, 0, 50]);

    // Repeats, late events, events that only name the message, the reference: none brings it back.
    publish("e000", "open", 1000, of_contact(0)).await;
    publish("late", "open", 5, of_contact(0)).await;
    publish("names", "open", 5, json!({ "message_id": "m", "campaign_id": "c" })).await;
    refer().await;
    publish("other", "open", 5, of_contact(1)).await;
    deployment.wait_until_done().await;
    assert_eq!(totals().await, [151, 0, 51]);
    assert_eq!(run(&["reconcile", "--json", "--every"]).await["looked_at"]["of forgotten contacts"], 56);
    run(&["reconcile", "--json", "--account", &account, "--campaign", "c"]).await;
    let told = run(&["explain", "late", "--account", &account, "--json"]).await;
    assert_eq!(told["messages"][0]["outcome"], "forgotten", "{told}");
    let again = run(&forget).await;
    assert_eq!(again["erased"]["contact_rows"], 0, "{again}");

    // Nor does the whole log, read once more by another group.
    ingest.sigterm_and_wait().await;
    let mut replaying = environment.clone();
    let group = format!("{account}_again");
    replaying.retain(|(name, _)| *name != "BACKSTAMP_GROUP");
    replaying.push(("BACKSTAMP_GROUP", &group));
    let ingest = Program::start(&["ingest"], &replaying).await;
    eventually(PATIENCE, async || {
        for (topic, suffix) in
            [(EVENTS, ""), ("mail.references", ".references"), ("mail.campaign-events", ".own")]
        {
            let lag = topics.lag(&format!("{group}{suffix}"), topic).await;
            ensure!(lag == 0, "{lag} of {topic} to do");
        }
        Ok(())
    })
    .await;
    assert_eq!(totals().await, [151, 0, 51]);
    let keyspace = environment.iter().find(|(name, _)| *name == "BACKSTAMP_KEYSPACE").unwrap().1;
    let session = servers::cassandra().await.session().await;
    let reference =
        format!("SELECT email FROM {keyspace}.refs WHERE account_id = ? AND kind = 'contact' AND id = ?");
    let rows = session.query_unpaged(reference, (account.as_str(), contacts[0].as_str())).await.unwrap();
    let (email,) = rows.into_rows_result().unwrap().single_row::<(Option<String>,)>().unwrap();
    assert_eq!(email, None);
    let facts = format!("SELECT facts FROM {keyspace}.sends WHERE account_id = ? AND message_id = 'm'");
    let rows = session.query_unpaged(facts, (account.as_str(),)).await.unwrap();
    let (facts,) = rows.into_rows_result().unwrap().single_row::<(Vec<u8>,)>().unwrap();
    assert!(!facts.windows(3).any(|part| part == b"a@b"), "{facts:?}");
    drop((query, ingest));
    deployment.remove().await;
}

#[tokio::test]
async fn projections_are_rebuilt_though_killed_compared_and_everybody_is_moved_over_and_back_under_load() {
    let deployment = Deployment::new().await;
    let ingest = deployment.ingest().await;
    let (query, client) = deployment.query().await;
    let environment: Vec<(&str, &str)> = deployment.environment();
    let account = unique_name("acc");
    let topics = &deployment.topics;
    let contacts: Vec<String> = (0..7).map(|_| new_id()).collect();
    let publish = async |id: &str, kind: &str, contact: usize| {
        let more = json!({ "contact_id": contacts[contact], "campaign_id": "c" });
        let mut record = event(id, kind, minutes_ago(5), &more);
        record["account_id"] = json!(account);
        topics.publish(EVENTS, None, record.to_string().as_bytes(), None).await;
    };
    for n in 0..300 {
        publish(&format!("e{n:03}"), "open", n % 7).await;
    }
    publish("bad", "nonsense", 0).await;
    let forget = ["forget-contact", "--account", &account, "--contact", &contacts[6]];
    let forgotten = Program::run(&forget, &environment).await;
    assert!(forgotten.status.success(), "{forgotten}");
    let key = Program::create_key(&account, &PERMISSIONS, &environment).await;
    let letters = async || topics.ends("mail.events.dead").await.values().sum::<i64>();
    let letters_before = letters().await;
    let shown = 300 - 300_u64 / 7;

    // A campaign whose records have left the log.
    let home = environment.iter().find(|(name, _)| *name == "BACKSTAMP_KEYSPACE").unwrap().1;
    let known = format!(
        "INSERT INTO {home}.tallies (account_id, subject, cell, bytes) VALUES (?, 'campaign:left', -1, 0x) USING TIMESTAMP 1"
    );
    let session = servers::cassandra().await.session().await;
    session.query_unpaged(known, (account.as_str(),)).await.unwrap();

    // Killed in the middle: what runs again goes on there.
    let to = unique_name("again");
    let group = format!("{}-{to}", deployment.group);
    let replay = |to: &str, rate: &str, more: &[&str]| -> Vec<String> {
        let arguments = ["replay", "--json", "--to", to, "--records-per-second", rate];
        arguments.iter().chain(more).map(ToString::to_string).collect()
    };
    let run = async |arguments: Vec<String>| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Program::run(&arguments, &environment).await
    };
    let replayed = async || topics.committed(&group, EVENTS).await.values().sum::<i64>();
    let slow = replay(&to, "10", &[]);
    let slow: Vec<&str> = slow.iter().map(String::as_str).collect();
    let in_the_middle = eventually(PATIENCE, async || {
        ensure!(replayed().await > 0, "nothing is replayed");
        Ok(())
    });
    Program::run_killed(&slow, &environment, in_the_middle).await;
    let done = replayed().await;
    assert!((1..301).contains(&done), "{done} of 301 were replayed");

    // Compared, and nobody is moved.
    let stayed = run(replay(&to, "200", &["--stay"])).await;
    assert!(stayed.status.success(), "{stayed}");
    let told = report(&stayed);
    assert_eq!((&told["differences"], &told["moved"]), (&json!([]), &json!(false)), "{told}");
    // Two campaigns, seven contacts, and the word that the one who was forgotten has nothing by campaign.
    assert_eq!(told["timelines_compared"], 10, "{told}");
    // What was refused is no second letter.
    assert_eq!(letters().await, letters_before);
    // Forgotten where it is live, while its rows stand in the new one.
    let forget = ["forget-contact", "--account", &account, "--contact", &contacts[5]];
    let forgotten = Program::run(&forget, &environment).await;
    assert!(forgotten.status.success(), "{forgotten}");
    let shown = shown - 300_u64.div_ceil(7);

    // Moved over and back while events come in and pages are read: no answer is an error, no total goes down.
    let total = async |client: &Client| {
        let campaign = path(Endpoint::Campaign, "c", "");
        let reply = send(client.request(Method::GET, &campaign).bearer_auth(&key)).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.body["meta"]["total"].as_u64().unwrap()
    };
    let (published, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let load = async {
        while !is_over.load(Ordering::SeqCst) {
            let n = published.fetch_add(1, Ordering::SeqCst);
            publish(&format!("more{n}"), "open", 1).await;
        }
    };
    let reading = async {
        let mut last = 0;
        while !is_over.load(Ordering::SeqCst) {
            let total = total(&client).await;
            assert!(total >= last, "a total went from {last} to {total}");
            last = total;
        }
    };
    let moving = async {
        for keyspace in [&to, home] {
            let moved = run(replay(keyspace, "2000", &[])).await;
            assert!(moved.status.success(), "{moved}");
            assert_eq!(report(&moved)["moved"], true, "{moved}");
            let again = run(replay(keyspace, "2000", &[])).await;
            assert!(!again.status.success() && again.stderr.contains("is live"), "{again}");
            let before = published.load(Ordering::SeqCst);
            eventually(PATIENCE, async || {
                for service in [&query, &ingest] {
                    let moves = service.stderr().matches("moving to another keyspace").count();
                    ensure!(moves == if keyspace == home { 2 } else { 1 }, "{moves} moves");
                }
                let total = total(&client).await;
                ensure!(total > before + shown, "total {total} after {before} more were published");
                Ok(())
            })
            .await;
            let left = path(Endpoint::Campaign, "left", "");
            let reply = send(client.request(Method::GET, &left).bearer_auth(&key)).await.unwrap();
            assert_eq!((reply.status, &reply.body["meta"]["total"]), (200, &json!(0)), "{}", reply.body);
            // Whoever goes on there writes letters, and has keys that are made now.
            let letters_before = letters().await;
            publish("bad", "nonsense", 0).await;
            eventually(PATIENCE, async || {
                ensure!(letters().await == letters_before + 1, "no letter");
                Ok(())
            })
            .await;
            let new_key = Program::create_key(&account, &PERMISSIONS, &environment).await;
            let campaign = path(Endpoint::Campaign, "c", "");
            eventually(PATIENCE, async || {
                let reply = send(client.request(Method::GET, &campaign).bearer_auth(&new_key)).await?;
                ensure!(reply.status == 200, "{} {}", reply.status, reply.body);
                Ok(())
            })
            .await;
        }
        is_over.store(true, Ordering::SeqCst);
    };
    tokio::join!(load, reading, moving);
    deployment.wait_until_done().await;
    assert_eq!(total(&client).await, published.load(Ordering::SeqCst) + shown);
    let reconciled = Program::run(&["reconcile", "--json", "--every"], &environment).await;
    assert!(reconciled.status.success(), "{reconciled}");
    drop((query, ingest));
    topics.delete(&[&format!("{to}.mail.campaign-events")]).await;
    servers::cassandra().await.drop_keyspace(&to).await;
    deployment.remove().await;
}

/// The rows of a page.
async fn page(client: &Client, key: &str, path: &str) -> Vec<Value> {
    eventually(Duration::from_secs(30), async || {
        let reply = send(client.request(Method::GET, path).bearer_auth(key)).await?;
        ensure!(reply.status == 200, "{path}: {} {}", reply.status, reply.body);
        let rows = reply.body["data"]["events"].as_array().or(reply.body["data"].as_array());
        Ok(rows.unwrap().clone())
    })
    .await
}
