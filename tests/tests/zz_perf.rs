#![allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::print_stdout)]
use backstamp_tests::{servers, unique_name};
use std::time::Instant;
use rdkafka::{ClientConfig, consumer::*, *};
#[tokio::test]
async fn both() {
    let k = servers::kafka().await;
    let topics = k.topics(&unique_name("p"));
    topics.create("a", 64).await;
    for _ in 0..200 { topics.publish("a", None, b"x", None).await; }
    for _ in 0..4 {
    let t = Instant::now();
    println!("{}", topics.consume_all("a").await.len());
    println!("consume {:?}", t.elapsed());
    }
    for wait in ["500", "10"] {
    for _ in 0..3 {
    let t = Instant::now();
    let c: StreamConsumer = ClientConfig::new().set("bootstrap.servers", &k.bootstrap).set("group.id", "x").set("fetch.wait.max.ms", wait).set("enable.auto.commit","false").create().unwrap();
    let t1 = t.elapsed();
    let mut l = TopicPartitionList::new();
    for p in 0..64 { l.add_partition_offset(&topics.name("a"), p, Offset::Offset(0)).unwrap(); }
    c.assign(&l).unwrap();
    let t2 = t.elapsed();
    let mut n = 0;
    let mut t3 = None;
    while n < 200 { c.recv().await.unwrap(); n += 1; if t3.is_none() { t3 = Some(t.elapsed()); } }
    let t4 = t.elapsed();
    drop(c);
    println!("{wait}: create {t1:?} assign {t2:?} first {t3:?} all {t4:?} drop {:?}", t.elapsed());
    }}
}
