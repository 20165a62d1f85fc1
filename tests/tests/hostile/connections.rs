//! Slow clients beside others: who is slow is cut off in the end, and nobody waits for it.

use std::time::{Duration, Instant};

use backstamp_tests::contract::{event, minutes_ago, new_id};
use backstamp_tests::eventually;
use backstamp_tests::program::Running;
use backstamp_tests::stack::Account;
use serde_json::json;
use tokio::task::JoinSet;

use super::wire::Wire;
use super::{is_full, memory, process, unlimited};

/// How long until the last slow connection is cut off: what is longest, a body, has 45 seconds, and some bytes after the answer ten.
const REAPED_WITHIN: Duration = Duration::from_secs(150);
/// How often a slow client sends something.
const DRIP: Duration = Duration::from_secs(2);

/// How a client is slow.
#[derive(Clone, Copy, Debug)]
enum Slow {
    /// It says nothing.
    Silent,
    /// Its headers never end.
    Headers,
    /// Its body drips in.
    Body,
    /// So does one that is refused at once, and goes on after the answer.
    RefusedBody,
    /// It asks and asks, and reads no answer.
    Deaf,
    /// It asked once and stays.
    Idle,
}

const KINDS: [Slow; 6] = [Slow::Silent, Slow::Headers, Slow::Body, Slow::RefusedBody, Slow::Deaf, Slow::Idle];

impl Slow {
    /// Is slow until the server has had enough of it.
    async fn attack(self, url: String, key: String) {
        let mut wire = match self {
            Slow::Deaf => Wire::narrow_to(&url).await,
            _ => Wire::to(&url).await,
        };
        let get =
            format!("GET {PATH}?per_page=100 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n\r\n");
        let post = format!("POST /v1/events HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n", 1 << 20);
        match self {
            Slow::Silent => wire.end().await,
            Slow::Headers => {
                wire.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n", "x".repeat(32 << 10))).await;
                // Whether it is told why is the server's affair.
                wire.drip(b"X-More: y\r\n", DRIP).await;
            }
            Slow::Body => {
                wire.send(format!("{post}Authorization: Bearer {key}\r\n\r\n")).await;
                let said = wire.drip(b" ", DRIP).await;
                assert!(said.starts_with("HTTP/1.1 408 ") && said.contains("request_timeout"), "{said}");
            }
            Slow::RefusedBody => {
                wire.send(format!("{post}\r\n")).await;
                // More often than a silence that would end it.
                let said = wire.drip(b" ", DRIP / 4).await;
                assert!(said.starts_with("HTTP/1.1 401 "), "{said}");
            }
            Slow::Deaf => {
                let many = get.repeat(64);
                while wire.send(&many).await {}
            }
            Slow::Idle => {
                wire.send(get).await;
                wire.end().await;
            }
        }
    }
}

const PATH: &str = "/v1/campaigns/c/events";

/// How many connections a process has.
fn sockets(process: &Running) -> usize {
    let files = std::fs::read_dir(format!("/proc/{}/fd", process.pid())).expect("it runs");
    let is_socket = |file: &std::path::Path| {
        std::fs::read_link(file).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
    };
    files.filter_map(|file| file.ok()).filter(|file| is_socket(&file.path())).count()
}

/// How long each of `count` reads took, one after another on one connection, sorted, in seconds. Every one must be right.
async fn read_times(url: &str, key: &str, count: usize) -> Vec<f64> {
    let mut wire = Wire::to(url).await;
    let get = format!("GET {PATH}?per_page=20 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n\r\n");
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let begun = Instant::now();
        wire.send(&get).await;
        let answer = wire.answer().await.expect("an answer");
        times.push(begun.elapsed().as_secs_f64());
        assert!(answer.status == 200 && answer.body.contains(r#""total":200"#), "{answer:?}");
    }
    times.sort_by(f64::total_cmp);
    times
}

fn p99(times: &[f64]) -> f64 {
    times[times.len() * 99 / 100]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_connections_hold_nobody_up_and_are_cut_off() {
    let (connections, reads) = if is_full() { (2000, 5000) } else { (120, 100) };
    let stack = unlimited().await;
    let account: Account<'_> = stack.account().await;
    let events: Vec<_> = (0..200)
        .map(|n| {
            let more = json!({ "contact_id": new_id(), "campaign_id": "c" });
            event(&format!("e{n}"), "open", minutes_ago(n), &more)
        })
        .collect();
    account.publish(&events).await;
    account.has_total(PATH, 200).await;
    let (dev, url, key) = (process(&stack), stack.url().to_owned(), account.key.clone());
    read_times(&url, &key, reads / 2).await;
    let quiet = read_times(&url, &key, reads).await;
    let (sockets_before, memory_before) = (sockets(dev), memory(dev));

    let mut attacks = JoinSet::new();
    for number in 0..connections {
        attacks.spawn(KINDS[number % KINDS.len()].attack(url.clone(), key.clone()));
    }
    eventually(REAPED_WITHIN, async || {
        let now = sockets(dev);
        // Some may be cut off before the last has come.
        anyhow::ensure!(now >= sockets_before + connections * 9 / 10, "{now} sockets");
        Ok(())
    })
    .await;
    let beside = read_times(&url, &key, reads).await;
    let grown = memory(dev).saturating_sub(memory_before) >> 20;
    let (quiet, beside) = (p99(&quiet) * 1000.0, p99(&beside) * 1000.0);
    eprintln!("{connections} slow connections: p99 {beside:.3} ms, quiet {quiet:.3} ms; {grown} MiB more");
    // Headers of 64 KiB and what an answer takes, each.
    assert!(grown < 64 + connections as u64 * 128 / 1024, "{grown} MiB");

    let begun = Instant::now();
    let all = async {
        while let Some(attack) = attacks.join_next().await {
            attack.expect("it is cut off as it should be");
        }
    };
    tokio::time::timeout(REAPED_WITHIN, all).await.expect("every slow connection is cut off");
    eventually(REAPED_WITHIN, async || {
        let now = sockets(dev);
        anyhow::ensure!(now <= sockets_before + 1, "{now} sockets, and {sockets_before} before");
        Ok(())
    })
    .await;
    eprintln!("all were cut off after {:.0} s", begun.elapsed().as_secs_f64());
    read_times(&url, &key, 10).await;
    if is_full() {
        assert!(beside <= 2.0 * quiet, "p99 {beside} ms, quiet {quiet} ms");
    }
}
