#![allow(missing_docs, clippy::unwrap_used)]
use std::sync::Arc;
use std::time::Instant;
use event_store::scylla::{ScyllaConfig, ScyllaStore, apply_schema};
use event_store::*;
use timeline::row::RowKey;
use timeline::*;

fn config(ks: &str) -> ScyllaConfig { let mut c = ScyllaConfig::new(vec!["127.0.0.1:29042".into()], ks); if let Ok(n) = std::env::var("CONN") { c.connections_per_node = n.parse().unwrap(); } c }
fn unique() -> String { format!("t{}", &uuid::Uuid::new_v4().simple().to_string()[..12]) }

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let ks = unique();
    let c = config(&ks);
    let err = ScyllaStore::connect(&c).await.map(|_| ()).unwrap_err();
    println!("{}", err.chain());
    let t = Instant::now();
    let (a, b) = tokio::join!(apply_schema(&c, None), apply_schema(&c, Some(1)));
    println!("{a:?}\n{b:?} {:?}", t.elapsed());
    println!("{:?}", apply_schema(&c, Some(2)).await);
    let t = Instant::now();
    let store = ScyllaStore::connect(&c).await.unwrap();
    println!("connect {:?}", t.elapsed());
    let t = Instant::now();
    conformance::run(Arc::new(store), "s").await;
    println!("conformance {:?}", t.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore]
async fn bench() {
    let ks = unique();
    let c = config(&ks);
    apply_schema(&c, None).await.unwrap();
    let store = Arc::new(ScyllaStore::connect(&c).await.unwrap());
    bench_store(store).await;
}

async fn bench_store(store: Arc<dyn EventStore>) {
    let now = Timestamp(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64);
    let account = AccountId::parse("acme").unwrap();
    let n = 200_000usize;
    let row = |i: usize| {
        let at = Timestamp(now.0 - i as i64);
        RowWrite { key: RowKey { position: Position { at, id: uuid::Uuid::from_u128(i as u128 * 7919 << 64).to_string().into() }, event_type: EventType::ALL[i % 8] }, stamp: at.0 * 1000, expires_at: now.plus_ms(180 * 86_400_000), body: vec![b'x'; 300] }
    };
    for round in 0..2 {
        let timeline = TimelineId::campaign(&account, &Id::parse(&format!("c{round}")).unwrap());
        let t = Instant::now();
        for chunk in (0..n).collect::<Vec<_>>().chunks(2000) {
            let g = RowGroup { timeline: timeline.clone(), part: 0, rows: chunk.iter().map(|i| row(*i)).collect() };
            store.write_rows(now, &[g]).await.unwrap();
        }
        println!("one partition, calls of 2000: {:.0} rows/s", n as f64 / t.elapsed().as_secs_f64());
    }
    for per in [1usize, 3] {
        let t = Instant::now();
        let m = 60_000;
        let mut rows = 0;
        for c in (0..m).collect::<Vec<_>>().chunks(2000) {
            let groups: Vec<_> = c.iter().map(|i| RowGroup { timeline: TimelineId::contact(&account, uuid::Uuid::from_u128(*i as u128)), part: 0, rows: (0..per).map(|j| row(i * 5 + j)).collect() }).collect();
            rows += groups.iter().map(|g| g.rows.len()).sum::<usize>();
            store.write_rows(now, &groups).await.unwrap();
        }
        println!("{per} row(s) for each of many contacts: {:.0} rows/s", rows as f64 / t.elapsed().as_secs_f64());
    }
    let timeline = TimelineId::campaign(&account, &Id::parse("c0").unwrap());
    for (label, types, width) in [("page 100, one type", TypeSet::of(&[EventType::Sent]), 800), ("page 100, all types", TypeSet::CAMPAIGN, 100), ("leaf 2000 keys", TypeSet::CAMPAIGN, 2000)] {
        let t = Instant::now();
        let k = 500;
        let mut found = 0;
        for i in 0..k {
            let last = now.0 - (i * 397 % 190_000) as i64;
            let span = Span::of_times(Timestamp(last - width + 1), Timestamp(last));
            let cols = if width == 2000 { Columns::Keys } else { Columns::All };
            found += store.read_rows(&timeline, 0, types, &span, cols).await.unwrap().len();
        }
        println!("{label}: {:.0} us, {} rows", t.elapsed().as_micros() as f64 / k as f64, found / k);
    }
    let t = Instant::now();
    for i in 0..500 {
        store.read_rows(&TimelineId::contact(&account, uuid::Uuid::from_u128(i)), 0, TypeSet::CONTACT, &Span::all(), Columns::Keys).await.unwrap();
    }
    println!("contact scan: {:.0} us", t.elapsed().as_micros() as f64 / 500.0);
    let t = Instant::now();
    for i in 0..500 {
        let w = TallyWrite { timeline: timeline.clone(), stamp: i, ttl_s: 3600, cells: (0..5).map(|c| (c, vec![1; 200])).collect() };
        store.write_tallies(&w).await.unwrap();
    }
    println!("write 5 tallies: {:.0} us", t.elapsed().as_micros() as f64 / 500.0);
    let t = Instant::now();
    for _ in 0..500 { store.read_tallies(&timeline, &[0, 1, 2]).await.unwrap(); }
    println!("read 3 tallies: {:.0} us", t.elapsed().as_micros() as f64 / 500.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore]
async fn bench_embedded() {
    let d = tempfile::tempdir().unwrap();
    let s = event_store::embedded::EmbeddedStore::open(d.path()).unwrap();
    bench_store(Arc::new(s.clone())).await;
    let t = Instant::now(); s.persist().await.unwrap(); println!("persist {:?}", t.elapsed());
    let t = Instant::now(); let sw = s.sweep(Timestamp(0)).await.unwrap(); println!("sweep {sw:?} {:?}", t.elapsed());
    drop(s);
    let t = Instant::now(); let _s = event_store::embedded::EmbeddedStore::open(d.path()).unwrap(); println!("reopen {:?}", t.elapsed());
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().filter(|l| l.starts_with("VmHWM") || l.starts_with("VmRSS")).collect::<Vec<_>>().join(" "));
}
