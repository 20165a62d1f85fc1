//! The event log on a real Kafka: what is read belongs to a claim, and only a claim that holds commits.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backstamp_tests::kafka::Topics;
use backstamp_tests::{eventually, servers, unique_name};
use event_log::{
    Appender, Batch, BatchLimits, CAMPAIGN_EVENTS_PARTITIONS, Claim, Consumer, Incoming, KafkaAppender,
    KafkaConfig, KafkaConsumer, LogError, Outgoing, Topic, TopicSettings, ensure_topics, parse_options,
};
use tokio::time::timeout;

const EVENTS: &str = "mail.events";
const PATIENCE: Duration = Duration::from_secs(60);
const LIMITS: BatchLimits = BatchLimits { records_max: 1000, bytes_max: 1 << 20, linger: Duration::ZERO };

/// A Kafka with topics of its own.
struct Log {
    topics: Topics,
    config: KafkaConfig,
}

impl Log {
    async fn new() -> Log {
        let prefix = unique_name("log");
        let kafka = servers::kafka().await;
        let config = KafkaConfig {
            brokers: kafka.bootstrap.clone(),
            group: unique_name("group"),
            client_id: "test".to_owned(),
            topic_prefix: prefix.clone(),
            internal_prefix: String::new(),
            options: parse_options("heartbeat.interval.ms=100").unwrap(),
        };
        Log { topics: kafka.topics(&prefix), config }
    }

    /// One whose `mail.events` has `partitions`, and in each `records` with their offsets for values.
    async fn with_events(partitions: i32, records: i64) -> Log {
        let log = Log::new().await;
        log.topics.create(EVENTS, partitions).await;
        log.publish(0..partitions, 0..records).await;
        log
    }

    async fn publish(&self, partitions: std::ops::Range<i32>, values: std::ops::Range<i64>) {
        let records = partitions.flat_map(|partition| {
            values.clone().map(move |value| Outgoing {
                partition: Some(partition),
                ..Outgoing::new(Topic::Events, None, Some(value.to_string().into_bytes()))
            })
        });
        self.appender().append(records.collect()).await.unwrap();
    }

    fn appender(&self) -> KafkaAppender {
        KafkaAppender::new(&self.config, &[Topic::Events]).unwrap()
    }

    fn consumer(&self) -> KafkaConsumer {
        KafkaConsumer::new(&self.config, Topic::Events).unwrap()
    }

    async fn committed(&self, partition: i32) -> Option<i64> {
        self.topics.committed(&self.config.group, EVENTS).await.get(&partition).copied()
    }
}

async fn next_batch(consumer: &KafkaConsumer, limits: BatchLimits) -> Batch {
    timeout(PATIENCE, consumer.next_batch(limits)).await.expect("a batch in time").unwrap()
}

/// The next batch that has records.
async fn next_records(consumer: &KafkaConsumer, limits: BatchLimits) -> Batch {
    loop {
        let batch = next_batch(consumer, limits).await;
        if !batch.records.is_empty() {
            return batch;
        }
    }
}

/// Waits until the consumer holds so many partitions.
async fn hold(consumer: &KafkaConsumer, partitions: usize) -> HashMap<i32, Claim> {
    eventually(PATIENCE, async || {
        let claims = consumer.claims();
        anyhow::ensure!(claims.len() == partitions, "{} partitions are held", claims.len());
        Ok(claims)
    })
    .await
}

fn offsets(records: &[Incoming]) -> Vec<i64> {
    records.iter().map(|record| record.offset).collect()
}

#[tokio::test]
async fn appended_records_are_read_back_with_the_brokers_time_and_a_new_member_goes_on_at_the_commit() {
    let log = Log::new().await;
    let settings = TopicSettings { events_partitions: 1, ..TopicSettings::default() };
    ensure_topics(&log.config, &settings).await.unwrap();
    let appender = log.appender();
    appender.check().await.unwrap();
    let before = chrono::Utc::now().timestamp_millis();
    let mut dead = Outgoing::new(Topic::DeadLetters, Some(b"k".to_vec()), Some(vec![b'x'; 1_040_000]));
    dead.headers = vec![("backstamp.code", "too_long".to_owned())];
    appender
        .append(vec![
            Outgoing::new(Topic::Events, Some(b"c".to_vec()), Some(b"one".to_vec())),
            Outgoing::new(Topic::Events, None, None),
            dead,
        ])
        .await
        .unwrap();

    let consumer = log.consumer();
    consumer.check().await.unwrap();
    let linger = BatchLimits { records_max: 2, linger: PATIENCE, ..LIMITS };
    let batch = next_records(&consumer, linger).await;
    let shown: Vec<_> =
        batch.records.iter().map(|r| (r.offset, r.key.as_deref(), r.value.as_deref())).collect();
    assert_eq!(shown, [(0, Some(b"c".as_slice()), Some(b"one".as_slice())), (1, None, None)]);
    let after = chrono::Utc::now().timestamp_millis();
    assert!(batch.records.iter().all(|record| (before..=after).contains(&record.appended_at.0)));
    let claim = batch.claims[&0];
    let outcome = consumer.commit(&[(0, claim, 1)]).await.unwrap();
    assert_eq!((outcome.done, outcome.refused), (vec![0], vec![]));
    consumer.close().await;

    let next = log.consumer();
    assert_eq!(offsets(&next_records(&next, LIMITS).await.records), [1]);
    let letters = log.topics.consume_all("mail.events.dead").await;
    assert_eq!(letters[0].header("backstamp.code"), Some("too_long"));
}

#[tokio::test]
async fn a_commit_under_a_claim_that_was_revoked_is_refused_and_the_next_holder_starts_at_the_last() {
    let log = Log::with_events(2, 500).await;
    let first = log.consumer();
    let old = hold(&first, 2).await;
    // A part of what was fetched is handed out, the rest waits in the client.
    let mut read: BTreeMap<i32, i64> = BTreeMap::new();
    while read.len() < 2 {
        let batch = next_batch(&first, BatchLimits { records_max: 100, ..LIMITS }).await;
        read.extend(batch.records.iter().map(|record| (record.partition, record.offset + 1)));
        assert!(batch.records.is_empty() || batch.claims == old);
    }
    // And a part was read by a call that was dropped, and is kept for the next.
    let dropped = BatchLimits { linger: PATIENCE, ..LIMITS };
    assert!(timeout(Duration::from_millis(300), first.next_batch(dropped)).await.is_err());
    let outcome = first.commit(&[(0, old[&0], 10), (1, old[&1], 10)]).await.unwrap();
    assert!(outcome.refused.is_empty(), "{outcome:?}");

    let second = log.consumer();
    let moved = *hold(&second, 1).await.keys().next().unwrap();
    let kept = 1 - moved;
    assert_eq!(
        hold(&first, 1).await,
        HashMap::from([(kept, old[&kept])]),
        "the claim that stays is the same"
    );
    let commits = [(moved, old[&moved], read[&moved]), (kept, old[&kept], read[&kept])];
    let outcome = first.commit(&commits).await.unwrap();
    assert_eq!((outcome.done, outcome.refused), (vec![kept], vec![moved]));
    assert_eq!(log.committed(moved).await, Some(10));
    assert_eq!(log.committed(kept).await, Some(read[&kept]));

    let batch = next_records(&second, LIMITS).await;
    assert_eq!(batch.records[0].offset, 10);
    let new = batch.claims[&moved];
    assert!(new > old[&moved]);
    assert_eq!(second.commit(&[(moved, new, 20)]).await.unwrap().done, [moved]);
    second.close().await;

    // It comes back: what was fetched under the old claim does not come with it.
    let back = hold(&first, 2).await;
    assert!(back[&moved] > new && back[&kept] == old[&kept]);
    let outcome = first.commit(&[(moved, old[&moved], 400), (moved, new, 400)]).await.unwrap();
    assert_eq!(outcome.refused, [moved, moved]);
    assert_eq!(log.committed(moved).await, Some(20));
    let mut seen: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
    while seen.values().map(Vec::len).sum::<usize>() < usize::try_from(480 + 500 - read[&kept]).unwrap() {
        for record in next_batch(&first, LIMITS).await.records {
            seen.entry(record.partition).or_default().push(record.offset);
        }
    }
    assert_eq!(seen[&moved], (20..500).collect::<Vec<_>>());
    assert_eq!(seen.remove(&kept).unwrap_or_default(), (read[&kept]..500).collect::<Vec<_>>());
}

/// One claim's work: where it started, and how far the broker has confirmed it.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    start: Option<i64>,
    committed: Option<i64>,
}

type History = Arc<Mutex<BTreeMap<(i32, Claim), Work>>>;

/// Reads and commits until told to end.
async fn work(
    consumer: KafkaConsumer,
    history: History,
    mut end: tokio::sync::watch::Receiver<bool>,
) -> KafkaConsumer {
    while !*end.borrow() {
        let batch = tokio::select! {
            batch = consumer.next_batch(BatchLimits { records_max: 37, ..LIMITS }) => batch.unwrap(),
            _ = end.changed() => break,
        };
        let mut done: BTreeMap<i32, i64> = BTreeMap::new();
        for record in &batch.records {
            let mut history = history.lock().unwrap();
            history
                .entry((record.partition, batch.claims[&record.partition]))
                .or_default()
                .start
                .get_or_insert(record.offset);
            let before = done.insert(record.partition, record.offset + 1);
            assert!(before.is_none_or(|before| before == record.offset), "a gap within a batch");
        }
        let commits: Vec<_> = done.iter().map(|(p, offset)| (*p, batch.claims[p], *offset)).collect();
        // A failure is one to try again; this worker goes on, and commits more the next time.
        let Ok(outcome) = consumer.commit(&commits).await else { continue };
        for partition in outcome.done {
            let mut history = history.lock().unwrap();
            history.entry((partition, batch.claims[&partition])).or_default().committed =
                Some(done[&partition]);
        }
    }
    consumer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn however_partitions_move_each_claim_starts_where_the_last_commit_ended() {
    moving_partitions("").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_holds_where_all_partitions_are_revoked_at_once() {
    moving_partitions("partition.assignment.strategy=range").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_holds_in_the_new_group_protocol() {
    moving_partitions("group.protocol=consumer").await;
}

async fn moving_partitions(options: &str) {
    let mut log = Log::with_events(6, 0).await;
    if !options.is_empty() {
        log.config.options = parse_options(options).unwrap();
    }
    let history = History::default();
    let (end, ended) = tokio::sync::watch::channel(false);
    let steady = tokio::spawn(work(log.consumer(), Arc::clone(&history), ended));
    let mut published = 0;
    for _ in 0..6 {
        let (leave, left) = tokio::sync::watch::channel(false);
        let guest = tokio::spawn(work(log.consumer(), Arc::clone(&history), left));
        // Under a steady stream partitions come to the guest, and go back.
        let claims_before = history.lock().unwrap().len();
        timeout(PATIENCE, async {
            while history.lock().unwrap().len() < claims_before + 3 {
                log.publish(0..6, published..published + 50).await;
                published += 50;
            }
        })
        .await
        .expect("partitions move");
        leave.send(true).unwrap();
        guest.await.unwrap().close().await;
    }
    eventually(PATIENCE, async || {
        let lag = log.topics.lag(&log.config.group, EVENTS).await;
        anyhow::ensure!(lag == 0, "lag is {lag}");
        Ok(())
    })
    .await;
    end.send(true).unwrap();
    steady.await.unwrap().close().await;

    let history = history.lock().unwrap();
    assert!(history.len() > 12, "{} claims", history.len());
    for partition in 0..6 {
        let mut reached = 0;
        for ((_, claim), work) in history.range((partition, Claim(0))..(partition + 1, Claim(0))) {
            assert_eq!(work.start, Some(reached), "{claim:?} of partition {partition}: {history:?}");
            reached = work.committed.unwrap_or(reached);
        }
        assert_eq!(reached, published, "partition {partition}");
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_loses_no_record() {
    let log = Log::with_events(2, 0).await;
    let consumer = log.consumer();
    let publishing = async {
        for value in 0..40 {
            log.publish(0..2, value * 10..(value + 1) * 10).await;
        }
    };
    let mut seen: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
    let reading = async {
        let limits = BatchLimits { linger: Duration::from_millis(20), ..LIMITS };
        while seen.values().map(Vec::len).sum::<usize>() < 800 {
            // Cut short in most rounds, while it waits or lingers.
            let Ok(batch) = timeout(Duration::from_millis(21), consumer.next_batch(limits)).await else {
                continue;
            };
            for record in batch.unwrap().records {
                seen.entry(record.partition).or_default().push(record.offset);
            }
        }
    };
    timeout(PATIENCE, async { tokio::join!(publishing, reading) }).await.unwrap();
    assert!(seen.values().all(|offsets| *offsets == (0..400).collect::<Vec<_>>()), "{seen:?}");
}

#[tokio::test]
async fn a_topic_that_is_missing_is_told_and_read_once_it_is_there() {
    let log = Log::new().await;
    let consumer = log.consumer();
    assert!(consumer.check().await.is_err_and(|error| error.may_pass()));
    let told = timeout(PATIENCE, consumer.next_batch(LIMITS)).await.unwrap();
    let error = told.expect_err("the topic is missing");
    assert!(matches!(error, LogError::Away { operation: "consume", .. }), "{error:?}");

    let appender = log.appender();
    assert!(appender.check().await.is_err_and(|error| error.may_pass()));
    log.topics.create(EVENTS, 1).await;
    log.publish(0..1, 0..3).await;
    appender.check().await.unwrap();
    assert_eq!(offsets(&next_records(&consumer, LIMITS).await.records)[0], 0);
    consumer.check().await.unwrap();
}

#[tokio::test]
async fn brokers_that_are_away_are_told_and_nothing_is_held() {
    let config = KafkaConfig {
        brokers: "127.0.0.1:1".to_owned(),
        group: unique_name("group"),
        options: parse_options("delivery.timeout.ms=200").unwrap(),
        ..KafkaConfig::default()
    };
    let appender = KafkaAppender::new(&config, &[Topic::Events]).unwrap();
    let record = Outgoing::new(Topic::Events, None, Some(b"x".to_vec()));
    assert!(appender.append(vec![record]).await.is_err_and(|error| error.may_pass()));
    assert!(appender.check().await.is_err_and(|error| error.may_pass()));
    assert!(ensure_topics(&config, &TopicSettings::default()).await.is_err_and(|error| error.may_pass()));
    let consumer = KafkaConsumer::new(&config, Topic::Events).unwrap();
    assert!(consumer.check().await.is_err());
    assert!(consumer.claims().is_empty());
    assert_eq!(consumer.commit(&[(0, Claim(1), 1)]).await.unwrap().refused, [0]);
    timeout(PATIENCE, consumer.close()).await.unwrap();
}

#[tokio::test]
async fn topics_are_created_once_with_their_settings_and_others_are_looked_over() {
    let log = Log::new().await;
    // Someone has made one already, as the broker makes them.
    log.topics.create("mail.references", 1).await;
    let settings = TopicSettings { events_partitions: 3, retention_days: 10, ..TopicSettings::default() };
    let report = ensure_topics(&log.config, &settings).await.unwrap();
    let name = |topic: Topic| log.topics.name(topic.name());
    assert_eq!(report.created, [Topic::Events, Topic::CampaignEvents, Topic::DeadLetters].map(name));
    assert_eq!(report.present, [name(Topic::References)]);
    let about = |text: &str| report.warnings.iter().filter(|warning| warning.contains(text)).count();
    assert_eq!(about("message.timestamp.type is CreateTime"), 1, "{report:?}");
    assert_eq!(about("instead of compact"), 1, "{report:?}");
    assert_eq!(
        report.warnings.iter().filter(|warning| !warning.starts_with("there are")).count(),
        2,
        "{report:?}"
    );

    log.topics.delete(&["mail.references"]).await;
    let report = eventually(PATIENCE, async || {
        let report = ensure_topics(&log.config, &settings).await?;
        anyhow::ensure!(report.created == [name(Topic::References)], "{report:?}");
        Ok(report)
    })
    .await;
    assert_eq!(report.present.len(), 3);
    let report = eventually(PATIENCE, async || {
        let report = ensure_topics(&log.config, &settings).await?;
        anyhow::ensure!(report.present.len() == 4, "{report:?}");
        Ok(report)
    })
    .await;
    assert_eq!(report.created, [""; 0]);
    assert!(report.warnings.iter().all(|warning| warning.starts_with("there are")), "{report:?}");

    let partitions = async |topic: Topic| log.topics.ends(topic.name()).await.len();
    assert_eq!(partitions(Topic::Events).await, 3);
    assert_eq!(partitions(Topic::CampaignEvents).await, usize::try_from(CAMPAIGN_EVENTS_PARTITIONS).unwrap());
    // A longer retention than they were made for.
    let longer = TopicSettings { retention_days: 11, ..settings };
    let report = ensure_topics(&log.config, &longer).await.unwrap();
    assert_eq!(
        report.warnings.iter().filter(|warning| warning.contains("retention.ms")).count(),
        2,
        "{report:?}"
    );
}

#[tokio::test]
async fn records_that_are_removed_under_a_reader_are_counted_and_it_goes_on_behind_them() {
    const PARTITION: i32 = 7;
    let log = Log::with_events(PARTITION + 1, 0).await;
    // Far more than a client fetches ahead.
    let random = |_| Outgoing {
        partition: Some(PARTITION),
        ..Outgoing::new(Topic::Events, None, Some((0..2000).map(|_| rand::random()).collect()))
    };
    log.appender().append((0..3000).map(random).collect()).await.unwrap();
    let lost = || telemetry::metrics::OFFSETS_LOST.with_label_values(&[EVENTS, &PARTITION.to_string()]).get();
    let before = lost();
    let consumer = log.consumer();
    let mut read = offsets(&next_records(&consumer, BatchLimits { records_max: 10, ..LIMITS }).await.records);
    log.topics.remove_before(EVENTS, &BTreeMap::from([(PARTITION, 2500)])).await;
    while read.last() != Some(&2999) {
        read.extend(offsets(&next_records(&consumer, LIMITS).await.records));
    }
    let ahead = read.iter().take_while(|offset| **offset < 2500).count();
    assert!(
        read.iter().copied().eq((0..i64::try_from(ahead).unwrap()).chain(2500..3000)),
        "{ahead} were fetched ahead"
    );
    eventually(PATIENCE, async || {
        let (lost, removed) = (lost() - before, 2500 - ahead as u64);
        anyhow::ensure!(lost == removed, "{lost} are counted, {removed} were removed unread");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_topic_that_is_created_again_is_read_from_its_start_by_a_reader_that_was_further() {
    let log = Log::with_events(1, 300).await;
    let consumer = log.consumer();
    let mut read = Vec::new();
    while read.len() < 300 {
        let batch = next_records(&consumer, LIMITS).await;
        read.extend(offsets(&batch.records));
        consumer.commit(&[(0, batch.claims[&0], read.last().unwrap() + 1)]).await.unwrap();
    }
    log.topics.delete(&[EVENTS]).await;
    let settings = TopicSettings { events_partitions: 1, ..TopicSettings::default() };
    eventually(PATIENCE, async || {
        let report = ensure_topics(&log.config, &settings).await?;
        anyhow::ensure!(report.created.contains(&log.topics.name(EVENTS)), "{report:?}");
        Ok(())
    })
    .await;
    log.publish(0..1, 0..50).await;
    let mut again = Vec::new();
    while again.len() < 50 {
        // That the topic is missing is told in between.
        let Ok(batch) = timeout(PATIENCE, consumer.next_batch(LIMITS)).await.unwrap() else { continue };
        again.extend(offsets(&batch.records));
        if let (Some(last), Some(claim)) = (again.last(), batch.claims.get(&0)) {
            consumer.commit(&[(0, *claim, last + 1)]).await.unwrap();
        }
    }
    assert!(again.iter().copied().eq(0..50), "{again:?}");
    assert_eq!(log.committed(0).await, Some(50));
}

/// A member in a process of its own, which can be stopped: this test program again, with [`stopped_member`]
/// alone.
struct OtherProcess {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl OtherProcess {
    fn start(log: &Log) -> OtherProcess {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["real::log::stopped_member", "--exact", "--ignored", "--nocapture", "--quiet"])
            .env("LOG_TEST_BROKERS", &log.config.brokers)
            .env("LOG_TEST_GROUP", &log.config.group)
            .env("LOG_TEST_PREFIX", &log.config.topic_prefix)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        OtherProcess { child, answers }
    }

    fn say(&mut self, order: &str) {
        writeln!(self.child.stdin.as_ref().unwrap(), "{order}").unwrap();
    }

    /// Its next answer; the test program's own lines are left out.
    fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.answers.read_line(&mut line).unwrap() > 0, "the other process has ended");
            if let Some(answer) = line.trim_end().strip_prefix("answer ") {
                return answer.to_owned();
            }
        }
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for OtherProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_process_that_was_stopped_and_replaced_commits_nothing_when_it_comes_back() {
    let log = Log::with_events(1, 100).await;
    let mut stopped = OtherProcess::start(&log);
    assert_eq!(stopped.answer(), "read 0");
    stopped.say("commit 7");
    assert_eq!(stopped.answer(), "done");
    stopped.signal("-STOP");

    let successor = log.consumer();
    let batch = next_records(&successor, LIMITS).await;
    assert_eq!(batch.records[0].offset, 7);
    assert_eq!(successor.commit(&[(0, batch.claims[&0], 9)]).await.unwrap().done, [0]);
    // Even with nobody left in the group, which is when the broker takes commits from strangers.
    successor.close().await;
    stopped.say("commit 50");
    stopped.signal("-CONT");
    assert_eq!(stopped.answer(), "refused");
    assert_eq!(log.committed(0).await, Some(9));

    // It joins again, and goes on where its successor stopped.
    assert_eq!(stopped.answer(), "read 9");
    stopped.say("commit 60");
    assert_eq!(stopped.answer(), "done");
    assert_eq!(log.committed(0).await, Some(60));
}

/// Reads; commits under the last claim when told to; tells both.
#[tokio::test]
#[ignore = "a part of another test, which starts it"]
#[expect(clippy::print_stdout, reason = "that is how it answers")]
async fn stopped_member() {
    let Ok(brokers) = std::env::var("LOG_TEST_BROKERS") else { return };
    let config = KafkaConfig {
        brokers,
        group: std::env::var("LOG_TEST_GROUP").unwrap(),
        topic_prefix: std::env::var("LOG_TEST_PREFIX").unwrap(),
        internal_prefix: String::new(),
        options: parse_options("session.timeout.ms=1500,heartbeat.interval.ms=200").unwrap(),
        ..KafkaConfig::default()
    };
    let consumer = KafkaConsumer::new(&config, Topic::Events).unwrap();
    let (orders, mut inbox) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        std::io::stdin().lines().map_while(Result::ok).try_for_each(|line| orders.send(line))
    });
    let mut claim = None;
    loop {
        tokio::select! {
            batch = consumer.next_batch(LIMITS) => {
                let batch = batch.unwrap();
                if let Some(record) = batch.records.first().filter(|_| batch.claims.get(&0).copied() != claim) {
                    claim = batch.claims.get(&0).copied();
                    println!("answer read {}", record.offset);
                }
            }
            order = inbox.recv() => {
                let Some(order) = order else { return };
                let offset = order.strip_prefix("commit ").unwrap().parse().unwrap();
                match consumer.commit(&[(0, claim.unwrap(), offset)]).await {
                    Ok(outcome) if outcome.refused.is_empty() => println!("answer done"),
                    Ok(_) => println!("answer refused"),
                    Err(error) => println!("answer failed {error:?}"),
                }
            }
        }
    }
}
