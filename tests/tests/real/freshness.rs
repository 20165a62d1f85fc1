//! `X-Backstamp-Visible-Until` while nobody reads a partition, while another takes over, and when a topic grows.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use backstamp_tests::contract::{event, minutes_ago, new_id};
use backstamp_tests::model::Endpoint;
use backstamp_tests::program::Program;
use backstamp_tests::stack::{Account, PATIENCE, Stack, path};
use backstamp_tests::{eventually, servers};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;

const EVENTS: &str = "mail.events";
/// Answers that are looked at while it stands still.
const ANSWERS: usize = 30;

/// A reader that never sees it go back.
struct Reader<'a> {
    account: &'a Account<'a>,
    path: String,
    last: DateTime<Utc>,
}

impl Reader<'_> {
    /// Until when everything is visible, and how many events are.
    async fn read(&mut self) -> Result<(DateTime<Utc>, u64)> {
        let reply = self.account.get(&self.path).await;
        let until = reply.headers.get("x-backstamp-visible-until").context("it is not known yet")?;
        let until = DateTime::parse_from_rfc3339(until.to_str()?)?.to_utc();
        assert!(until >= self.last, "{until} after {}", self.last);
        self.last = until;
        Ok((until, reply.body["pagination"]["total"].as_u64().unwrap_or(0)))
    }

    /// Waits until it is as far as `published`; there are so many events then.
    async fn reaches(&mut self, published: DateTime<Utc>, events: u64) {
        eventually(PATIENCE, async || {
            let (until, total) = self.read().await?;
            ensure!(until >= published, "{until}, published at {published}");
            assert_eq!(total, events, "visible until {until}, published at {published}");
            Ok(())
        })
        .await;
    }
}

#[tokio::test]
async fn freshness_stands_still_while_nobody_reads_and_never_runs_ahead() {
    let stack = Stack::real().await;
    let account = stack.account().await;
    let topics = stack.topics().unwrap();
    let contact = new_id();
    let publish = async |n: u64, partition: i32| {
        // A new producer each time: one that is there does not see at once that a topic has grown.
        let topics = servers::kafka().await.topics(&topics.name(""));
        let more = json!({ "contact_id": contact, "account_id": account.name });
        let open = event(&format!("evt_{n}"), "open", minutes_ago(5), &more).to_string();
        topics.publish(EVENTS, None, open.as_bytes(), Some(partition)).await;
        Utc::now()
    };
    let asked = path(Endpoint::Contact, &contact, "");
    let mut reader = Reader { account: &account, path: asked, last: DateTime::UNIX_EPOCH };
    let published = publish(1, 0).await;
    reader.reaches(published, 1).await;

    // Nobody reads: it does not go on, and does not go away.
    let (_, ingest) = stack.services().into_iter().find(|(name, _)| *name == "ingest").unwrap();
    ingest.stop();
    let published = publish(2, 1).await;
    for _ in 0..ANSWERS {
        let (until, _) = reader.read().await.unwrap();
        assert!(until < published, "{until}, but nobody read what was published at {published}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ingest.cont();
    reader.reaches(published, 2).await;

    // A partition that nobody knew counts from its first record.
    topics.grow(EVENTS, 4).await;
    let published = eventually(PATIENCE, async || {
        ensure!(topics.ends(EVENTS).await.len() == 4, "the topic has not grown yet");
        Ok(publish(3, 3).await)
    })
    .await;
    reader.reaches(published, 3).await;

    // Another takes over, and goes on from there.
    ingest.kill9();
    let published = publish(4, 2).await;
    let mut environment = stack.environment();
    environment.push(("BACKSTAMP_GROUP", stack.group()));
    let _ingest = Program::start(&["ingest"], &environment).await;
    reader.reaches(published, 4).await;
    reader.reaches(Utc::now() + TimeDelta::seconds(2), 4).await;
}
