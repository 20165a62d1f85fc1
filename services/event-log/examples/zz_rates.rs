//! temp
use event_log::*; use std::sync::Arc; use std::time::Instant; use timeline::Timestamp;
#[tokio::main]
async fn main() {
    let dir = tempfile::TempDir::new_in(std::env::args().nth(1).unwrap_or("/tmp".into())).unwrap();
    let log = Arc::new(EmbeddedLog::open(dir.path(), Arc::new(|| Timestamp(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64))).unwrap());
    for (callers, per) in [(1usize, 1usize), (64, 1), (64, 100), (16, 1000)] {
        let total = if callers == 1 { 300 } else if per == 1 { 20_000 } else { 1_000_000 };
        let t = Instant::now();
        let tasks: Vec<_> = (0..callers).map(|_| { let log = log.clone(); tokio::spawn(async move {
            for _ in 0..total / callers / per {
                let records = (0..per).map(|_| Outgoing::new(Topic::Events, Some(b"campaign_1".to_vec()), Some(vec![b'x'; 250]))).collect();
                log.append(records).await.unwrap();
            }
        })}).collect();
        for t in tasks { t.await.unwrap(); }
        println!("{callers} callers x {per}: {:.0}/s", total as f64 / t.elapsed().as_secs_f64());
    }
    let t = Instant::now(); let mut next = log.first_offset(); let start = next; 
    while next < log.end_offset() { next += log.read(next, 1000, 1<<20).unwrap().len() as u64; }
    println!("read {:.0}/s", (next-start) as f64 / t.elapsed().as_secs_f64());
    drop(log);
    let t = Instant::now();
    let log = EmbeddedLog::open(dir.path(), Arc::new(|| Timestamp(0))).unwrap();
    println!("open {} records {:?}", log.end_offset(), t.elapsed());
}
