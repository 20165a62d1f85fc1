//! temp
use event_log::*; use std::sync::Arc; use std::time::{Duration, Instant};
#[tokio::main]
async fn main() {
    let prefix = format!("rate{}", std::process::id());
    let config = KafkaConfig { brokers: "127.0.0.1:19492".into(), group: prefix.clone(), topic_prefix: prefix, ..Default::default() };
    ensure_topics(&config, &TopicSettings::default()).await.unwrap();
    let log = Arc::new(KafkaAppender::new(&config, &[]).unwrap());
    for (callers, per, total) in [(1usize, 1usize, 200usize), (16, 1000, 1_000_000)] {
        let t = Instant::now();
        let tasks: Vec<_> = (0..callers).map(|_| { let log = log.clone(); tokio::spawn(async move {
            for i in 0..total / callers / per {
                let records = (0..per).map(|n| Outgoing::new(Topic::CampaignEvents, Some(format!("c{}", (i * per + n) % 500).into_bytes()), Some(format!("{{\"id\":\"{i}-{n}\",\"x\":\"{}\"}}", "abcdefghij".repeat(25)).into_bytes()))).collect();
                log.append(records).await.unwrap();
            }
        })}).collect();
        for t in tasks { t.await.unwrap(); }
        println!("append {callers} callers x {per}: {:.0}/s", total as f64 / t.elapsed().as_secs_f64());
    }
    let t0 = Instant::now();
    let consumer = KafkaConsumer::new(&config, Topic::CampaignEvents).unwrap();
    let (mut n, mut batches) = (0, 0); let mut t = Instant::now(); let mut commit_time = Duration::ZERO;
    while n < 1_000_200 {
        let b = consumer.next_batch(BatchLimits { records_max: 5000, bytes_max: 8 << 20, linger: Duration::from_millis(5) }).await.unwrap();
        if n == 0 && !b.records.is_empty() { println!("first batch after {:?}", t0.elapsed()); t = Instant::now(); }
        n += b.records.len(); batches += 1;
        let mut done = std::collections::HashMap::new();
        for r in &b.records { done.insert(r.partition, r.offset + 1); }
        let c = Instant::now();
        let commits: Vec<_> = done.iter().map(|(p, o)| (*p, b.claims[p], *o)).collect();
        consumer.commit(&commits).await.unwrap(); commit_time += c.elapsed();
    }
    println!("consume {:.0}/s in {batches} batches; commits {:?} each; rss {}", n as f64 / t.elapsed().as_secs_f64(), commit_time / batches, std::fs::read_to_string("/proc/self/status").unwrap().lines().find(|l| l.starts_with("VmRSS")).unwrap());
    // latency
    let mut total = Duration::ZERO;
    for _ in 0..100 {
        let t = Instant::now();
        let (a, _) = tokio::join!(async { loop { let b = consumer.next_batch(BatchLimits { records_max: 10, bytes_max: 1000, linger: Duration::ZERO }).await.unwrap(); if !b.records.is_empty() { break t.elapsed() } } },
            log.append(vec![Outgoing::new(Topic::CampaignEvents, Some(b"k".to_vec()), Some(b"v".to_vec()))]));
        total += a;
    }
    println!("append to read: {:?}", total / 100);
    let t = Instant::now(); consumer.close().await; println!("close {:?}", t.elapsed());
    let t = Instant::now(); let c = KafkaConsumer::new(&config, Topic::CampaignEvents).unwrap(); while c.claims().is_empty() { tokio::time::sleep(Duration::from_millis(1)).await; } println!("join {:?}", t.elapsed()); drop(c);
}
