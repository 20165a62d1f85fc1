//! Bodies that are larger, deeper or more than they look. What each may take of memory is bounded, and so is what all of them may.

use std::io::Write;

use backstamp_tests::contract::{event, minutes_ago, new_id};
use backstamp_tests::stack::{Account, Stack};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;

use super::wire::Wire;
use super::{is_full, memory, process, unlimited};

const BODY_BYTES_MAX: usize = 8 << 20;

/// 8 MiB that would be 8 GiB.
fn bomb() -> Vec<u8> {
    let zeros = vec![b'0'; 1 << 20];
    let mut once = GzEncoder::new(Vec::new(), Compression::best());
    for _ in 0..64 {
        once.write_all(&zeros).expect("written");
    }
    // Members of gzip may follow one another.
    once.finish().expect("compressed").repeat(128)
}

#[tokio::test]
async fn a_compressed_body_is_refused_and_never_unpacked() {
    let stack = Stack::shared_dev().await;
    let account = stack.account().await;
    let bomb = bomb();
    for encoding in ["gzip", "x-gzip", "deflate", "br", "zstd", "identity, gzip", "GZIP"] {
        let request = account.intake_request("/v1/events").header("content-encoding", encoding);
        let response = request.body(bomb.clone()).send().await.expect("an answer");
        assert_eq!(response.status(), 415, "{encoding}");
    }
    // One that does not say so is bytes that are no JSON, and too many of them.
    for (bytes, code) in [(bomb.len(), "too_large"), (1 << 10, "malformed_json")] {
        let reply = account.post("/v1/events", "application/json", bomb[..bytes].to_vec()).await;
        assert_eq!((reply.status, &reply.body["rejected"][0]["code"]), (400, &json!(code)));
    }
    // As an encoding of the transfer it is none that is known.
    let mut wire = Wire::to(stack.intake_url()).await;
    wire.send(format!(
        "POST /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        account.key
    ))
    .await;
    let answer = wire.answer().await.expect("an answer");
    assert!((400..500).contains(&answer.status), "{answer:?}");
}

#[tokio::test]
async fn deep_json_is_judged_like_any_other() {
    let stack = Stack::shared_dev().await;
    let account = stack.account().await;
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    for (body, code) in [
        (nested(BODY_BYTES_MAX / 2), "too_large"),
        ("[".repeat(BODY_BYTES_MAX), "malformed_json"),
        (r#"{"a":"#.repeat(1 << 20), "too_large"),
        (r#"{"a":"#.repeat(10_000), "malformed_json"),
        (nested(10_000), "malformed_json"),
    ] {
        let reply = account.post("/v1/events", "application/json", body).await;
        assert_eq!(reply.status, 400, "{}", reply.body);
        let rejected = &reply.body["rejected"];
        assert_eq!((&rejected[0]["code"], &rejected[1]), (&json!(code), &json!(null)));
    }
    let at = minutes_ago(1);
    let with = |field: &str, depth: usize| {
        let more = json!({ "contact_id": new_id(), "campaign_id": "deep", "field": "here" });
        let event = event("deep", "open", at, &more).to_string();
        event.replace(r#""field":"here""#, &format!(r#""{field}":{{"a":{}}}"#, nested(depth)))
    };
    for (body, status) in [
        // What is ignored may be as it likes; what is shown is not to break its reader.
        (with("unknown", 30_000), 202),
        (with("metadata", 63), 202),
        (with("metadata", 64), 400),
        (with("metadata", 4_000), 400),
        (with("purchase", 10_000), 400),
        (with("bounce", 10_000), 202),
    ] {
        let reply = account.post("/v1/events", "application/json", body.clone()).await;
        assert_eq!(reply.status, status, "{} of {}…", reply.body, &body[..200]);
    }
    account.campaign_has("deep", &["deep"]).await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_however_it_comes() {
    let stack = Stack::shared_dev().await;
    let account = stack.account().await;
    let post = format!("POST /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n", account.key);
    // By what it says: nothing of it is awaited.
    for length in [BODY_BYTES_MAX as u64 + 1, 1 << 40, u64::MAX - 2] {
        for expect in ["", "Expect: 100-continue\r\n"] {
            let mut wire = Wire::to(stack.intake_url()).await;
            wire.send(format!("{post}{expect}Content-Length: {length}\r\n\r\n")).await;
            let answers = wire.answers().await;
            assert!(matches!(&answers[..], [answer] if answer.status == 413), "{length}: {answers:?}");
        }
    }
    // By what comes.
    let mut wire = Wire::to(stack.intake_url()).await;
    wire.send(format!("{post}Transfer-Encoding: chunked\r\n\r\n")).await;
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, " ".repeat(1 << 20));
    for _ in 0..9 {
        wire.send(&chunk).await;
    }
    let answers = wire.answers().await;
    assert!(matches!(&answers[..], [answer] if answer.status == 413), "{answers:?}");
}

/// Each body holds what would take many times its bytes if each of its records were kept; in the full form there are more bodies
/// than there is room for.
#[tokio::test]
async fn many_bodies_of_many_records_take_a_bounded_room() {
    let stack = unlimited().await;
    let account = stack.account().await;
    let before = memory(process(&stack));
    let mut most = before;
    let bodies: [(&str, Vec<u8>); 4] = [
        ("application/json", [b"[0".to_vec(), b",0".repeat(BODY_BYTES_MAX / 2 - 2), b"]".to_vec()].concat()),
        ("application/x-ndjson", b"0\n".repeat(BODY_BYTES_MAX / 2)),
        (
            "application/json",
            [b"[{}".to_vec(), b",{}".repeat(BODY_BYTES_MAX / 3 - 2), b"]".to_vec()].concat(),
        ),
        ("application/json", br#"{"id":"#.repeat(BODY_BYTES_MAX / 6)),
    ];
    for (content_type, body) in &bodies {
        let sent = (0..if is_full() { 16 } else { 4 }).map(|_| post(&account, content_type, body));
        let watched = async {
            let all = futures::future::join_all(sent);
            tokio::pin!(all);
            loop {
                tokio::select! {
                    statuses = &mut all => break statuses,
                    () = tokio::time::sleep(std::time::Duration::from_millis(5)) => {
                        most = most.max(memory(process(&stack)));
                    }
                }
            }
        };
        let statuses = watched.await;
        // 503 where there is no room just now.
        assert!(statuses.iter().all(|status| [400, 503].contains(status)), "{statuses:?}");
        assert!(statuses.contains(&400), "{statuses:?}");
    }
    let grown = (most - before) >> 20;
    eprintln!("bodies of many records: {} MiB, {grown} MiB more at most", before >> 20);
    // 64 MiB of bodies at a time, and what they are told apart into.
    assert!(grown < 320, "{grown} MiB");
}

async fn post(account: &Account<'_>, content_type: &str, body: &[u8]) -> u16 {
    account.post("/v1/events", content_type, body.to_vec()).await.status
}
