//! SIGTERM under load: requests that have begun are answered, every process ends with 0 within ten seconds, and what was
//! acknowledged is there.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use backstamp_tests::client::{Client, Form};
use backstamp_tests::deployment::{Addresses, CLASSIC};
use backstamp_tests::eventually;
use backstamp_tests::history::{Record, Topic};
use backstamp_tests::proxy::Proxy;
use backstamp_tests::trial::Trial;
use futures::future::join_all;
use rand::rngs::StdRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::scene::{Scene, is_whole, sized};

const PATIENCE: Duration = Duration::from_secs(60);
const DRAIN_MAX: Duration = Duration::from_secs(10);
const SENDERS: usize = 6;
const BATCH_RECORDS: usize = 30;
/// How much slower the store is for the page that is under way.
const STORE_DELAY: Duration = Duration::from_millis(400);

#[tokio::test]
async fn sigterm_under_load_answers_what_has_begun_and_loses_nothing() {
    let rounds = sized(1, 5);
    // The program reaches the store through a proxy, which can hold an answer back.
    let proxy = Proxy::start();
    let mut addresses = Addresses::shared().await;
    proxy.lead_to(&addresses.store);
    addresses.store_of_program = proxy.address();
    let mut scene = Scene::at(addresses, CLASSIC, 6000, sized(2500, 30_000)).await;
    let records: Vec<Record> = scene.records().iter().filter(|record| record.is_postable).cloned().collect();
    let mut acknowledged = Vec::new();
    let mut slowest = Duration::ZERO;
    for slice in records.chunks(records.len().div_ceil(rounds)) {
        let Scene { deployment, trial, .. } = &scene;
        let (collect, query, ingest) =
            (deployment.start("collect").await, deployment.start("query").await, deployment.ingest().await);
        let load = Load::new(trial, Client::new(collect.url()).unwrap(), Client::new(query.url()).unwrap());
        let ending = async {
            load.wait_until_taken(slice.len() / 3).await;
            let key = trial.keys.values().next().unwrap();
            let posting = Begun::post(&collect, key).await;
            proxy.delay(STORE_DELAY);
            let reading = Begun::get(&query, key, &proxy).await;
            let before = Instant::now();
            let ended = tokio::join!(
                collect.sigterm_and_wait(),
                query.sigterm_and_wait(),
                ingest.sigterm_and_wait(),
                posting.finish("202"),
                reading.finish("404"),
            );
            for (status, service) in [(ended.0, &collect), (ended.1, &query), (ended.2, &ingest)] {
                assert_eq!(status.code(), Some(0), "{}", service.stderr());
            }
            proxy.behave();
            load.end();
            before.elapsed()
        };
        let (took, ()) = tokio::join!(ending, load.run(slice));
        slowest = slowest.max(took);
        acknowledged.append(&mut load.acknowledged.lock().unwrap());
    }
    assert!(!is_whole() || slowest <= DRAIN_MAX, "it took {slowest:?}");
    let Scene { deployment, sender_rng, .. } = &mut scene;
    let _ingest = deployment.ingest().await;
    finish_references(deployment, &records, sender_rng).await;
    scene
        .balance(&acknowledged, &[], &format!("SIGTERM under load, {rounds} times, at most {slowest:?}"))
        .await;
    scene.clear_up().await;
}

/// Names are published once more, in their order: that of posts beside each other is nobody's.
async fn finish_references(
    deployment: &backstamp_tests::deployment::Deployment,
    records: &[Record],
    rng: &mut StdRng,
) {
    let references: Vec<Record> =
        records.iter().filter(|record| record.topic == Topic::References).cloned().collect();
    deployment.publish(&references, rng).await;
}

/// Senders that post, and readers that read, until told to end.
struct Load<'a> {
    trial: &'a Trial,
    intake: Client,
    reads: Client,
    taken: AtomicUsize,
    is_over: AtomicBool,
    acknowledged: Mutex<Vec<Record>>,
}

impl<'a> Load<'a> {
    fn new(trial: &'a Trial, intake: Client, reads: Client) -> Load<'a> {
        Load {
            trial,
            intake,
            reads,
            taken: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
            acknowledged: Mutex::default(),
        }
    }

    async fn wait_until_taken(&self, records: usize) {
        eventually(PATIENCE, async || {
            let taken = self.taken.load(Ordering::Relaxed);
            ensure!(taken >= records, "only {taken} records are taken in");
            Ok(())
        })
        .await;
    }

    fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    async fn run(&self, records: &[Record]) {
        let events: Vec<Record> =
            records.iter().filter(|record| record.topic == Topic::Events).cloned().collect();
        let lanes = events.chunks(events.len().div_ceil(SENDERS)).map(|lane| self.post(lane));
        tokio::join!(join_all(lanes), self.read());
    }

    /// Posts, again from the start once all is posted, until there is nobody who takes it.
    async fn post(&self, lane: &[Record]) {
        for batch in lane.chunks(BATCH_RECORDS).cycle() {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            let account = &batch[0].account;
            let batch: Vec<&Record> = batch.iter().filter(|record| record.account == *account).collect();
            let bodies: Vec<Vec<u8>> = batch.iter().filter_map(|record| record.post_body()).collect();
            let posted =
                self.intake.post(Topic::Events, &self.trial.keys[account], &bodies, Form::Array).await;
            // Who is not answered was not promised anything.
            let Ok(reply) = posted else { return };
            assert!(matches!(reply.status, 202 | 400), "{} {}", reply.status, reply.body);
            if reply.status == 202 {
                let well =
                    batch.iter().filter(|record| record.flaw.is_none()).map(|record| (*record).clone());
                self.acknowledged.lock().unwrap().extend(well);
            }
            self.taken.fetch_add(batch.len(), Ordering::Relaxed);
        }
    }

    async fn read(&self) {
        let key = self.trial.keys.values().next().unwrap();
        while !self.is_over.load(Ordering::Relaxed) {
            let request = self.reads.request(reqwest::Method::GET, "/v1/campaigns/nobody/events");
            let Ok(reply) = backstamp_tests::client::send(request.bearer_auth(key)).await else { return };
            assert_eq!(reply.status, 404, "{}", reply.body);
        }
    }
}

/// A request that the service has begun to work on, and not answered.
struct Begun {
    stream: TcpStream,
    rest: &'static [u8],
}

impl Begun {
    /// A post whose body is awaited: the service has said so.
    async fn post(service: &backstamp_tests::program::Running, key: &str) -> Begun {
        let bytes = EVENT.len();
        let head = format!(
            "POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n\
             Content-Length: {bytes}\r\nExpect: 100-continue\r\n\r\n"
        );
        let mut stream = connect(service.url(), &head).await;
        let mut line = [0; 25];
        stream.read_exact(&mut line).await.unwrap();
        assert_eq!(&line[..], b"HTTP/1.1 100 Continue\r\n\r\n", "{}", String::from_utf8_lossy(&line));
        Begun { stream, rest: EVENT }
    }

    /// A page for which the store has been asked.
    async fn get(service: &backstamp_tests::program::Running, key: &str, proxy: &Proxy) -> Begun {
        proxy.watch_for("cmp_under_way");
        let head = format!(
            "GET /v1/campaigns/cmp_under_way/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n"
        );
        let stream = connect(service.url(), &head).await;
        eventually(PATIENCE, async || {
            ensure!(proxy.has_seen(), "the store is not asked");
            Ok(())
        })
        .await;
        Begun { stream, rest: b"" }
    }

    /// Sends what is left of it, and reads its answer.
    async fn finish(mut self, status: &str) {
        self.stream.write_all(self.rest).await.unwrap();
        let mut answer = String::new();
        self.stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}

/// It is taken in, and long expired.
const EVENT: &[u8] = br#"{"id":"under_way","type":"open","occurred_at":"2020-01-01T00:00:00Z","contact_id":"7b1f9c2e-3a4d-4b8e-9c1d-2e3f4a5b6c7d"}"#;

async fn connect(url: &str, head: &str) -> TcpStream {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}
