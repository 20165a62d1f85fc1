//! `POST /v1/events` and `POST /v1/references`. The answer comes once everything that was accepted is durable.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use edge::{Access, Problem};
use event_log::{LogError, Outgoing};
use serde::Serialize;
use telemetry::metrics::INTAKE;
use telemetry::traces::{self, TRACEPARENT};
use timeline::{AccountId, Refusal, Timestamp};

use crate::body::Held;
use crate::record::Kind;
use crate::split::{Form, split};
use crate::{Collect, REJECTED_MAX};

/// Bodies above this are judged on a thread of their own, in bytes: a large one keeps a core busy for a tenth of a
/// second.
const INLINE_BYTES_MAX: usize = 64 << 10;

/// Takes events in.
pub(crate) async fn take_events(
    State(collect): State<Arc<Collect>>,
    access: Access,
    request: Request,
) -> Result<Response, Problem> {
    take(Kind::Event, &collect, &access, request).await
}

/// Takes references in.
pub(crate) async fn take_references(
    State(collect): State<Arc<Collect>>,
    access: Access,
    request: Request,
) -> Result<Response, Problem> {
    take(Kind::Reference, &collect, &access, request).await
}

async fn take(kind: Kind, collect: &Collect, access: &Access, request: Request) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let form = Form::of(&head.headers)?;
    let body = collect.room.read(&head.headers, body).await?;
    let now = (collect.clock)();
    // The body's room is held until everything of it is durable.
    let (_room, Judged { mut accepted, rejected }) =
        judge_held(kind, form, body, access.account(), now).await?;
    if let Some(traceparent) = traces::traceparent() {
        for record in &mut accepted {
            record.headers.push((TRACEPARENT, traceparent.clone()));
        }
    }
    let count = accepted.len();
    if count > 0 {
        collect.appender.append(accepted).await.map_err(|error| unavailable(&error))?;
        INTAKE.with_label_values(&[kind.label(), "accepted"]).inc_by(count as u64);
    }
    for rejection in &rejected {
        INTAKE.with_label_values(&[kind.label(), rejection.code]).inc();
    }
    let error = (count == 0).then(|| NothingAccepted::because(rejected.len()));
    let answer = Answer { accepted: count, rejected, error };
    let status = if count == 0 { StatusCode::BAD_REQUEST } else { StatusCode::ACCEPTED };
    Ok((status, Json(answer)).into_response())
}

/// What becomes of a body.
#[derive(Default)]
struct Judged {
    accepted: Vec<Outgoing>,
    rejected: Vec<Rejection>,
}

async fn judge_held(
    kind: Kind,
    form: Form,
    body: Held,
    account: &AccountId,
    now: Timestamp,
) -> Result<(Held, Judged), Problem> {
    if body.bytes.len() <= INLINE_BYTES_MAX {
        let judged = judge(kind, form, &body.bytes, account, now);
        return Ok((body, judged));
    }
    let account = account.clone();
    let judging = tokio::task::spawn_blocking(move || {
        let judged = judge(kind, form, &body.bytes, &account, now);
        (body, judged)
    });
    judging.await.map_err(|error| {
        tracing::error!(%error, "a body could not be judged");
        Problem::Internal
    })
}

fn judge(kind: Kind, form: Form, body: &[u8], account: &AccountId, now: Timestamp) -> Judged {
    let records = match split(form, body) {
        Ok(records) => records,
        // A body that cannot be read at all is one bad record.
        Err(refusal) => return Judged { rejected: vec![Rejection::new(0, refusal)], ..Judged::default() },
    };
    let mut judged = Judged::default();
    for (index, record) in records.into_iter().enumerate() {
        match kind.accept(account, record, now) {
            Ok(record) => judged.accepted.push(record),
            Err(refusal) => judged.rejected.push(Rejection::new(index, refusal)),
        }
        if judged.rejected.len() > REJECTED_MAX {
            judged.accepted.clear();
            break;
        }
    }
    judged
}

/// The log's failure is logged here, and goes no further.
fn unavailable(error: &LogError) -> Problem {
    tracing::warn!(operation = error.operation(), error = error.chain(), "the event log failed");
    Problem::Unavailable
}

#[derive(Serialize)]
struct Answer {
    accepted: usize,
    rejected: Vec<Rejection>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<NothingAccepted>,
}

/// Why a record was not taken in.
#[derive(Serialize)]
struct Rejection {
    /// Which, counted from 0: its place in the array, or among the lines that are not empty.
    index: usize,
    code: &'static str,
    message: String,
}

impl Rejection {
    fn new(index: usize, refusal: Refusal) -> Rejection {
        Rejection { index, code: refusal.code, message: refusal.message }
    }
}

#[derive(Serialize)]
struct NothingAccepted {
    code: &'static str,
    message: &'static str,
}

impl NothingAccepted {
    /// What is said where `rejected` records were rejected and none accepted.
    fn because(rejected: usize) -> NothingAccepted {
        let message = if rejected <= REJECTED_MAX {
            "Nothing was accepted"
        } else {
            "Too many were rejected, so nothing was accepted"
        };
        NothingAccepted { code: "nothing_accepted", message }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use async_trait::async_trait;
    use axum::Router;
    use axum::body::Body;
    use edge::testing::{Answer, Bench, request, send};
    use event_log::{Appender, Topic};
    use timeline::key::Permission;

    use super::*;
    use crate::{BODY_BYTES_MAX, router};

    /// A log in memory, which can be away.
    #[derive(Default)]
    struct Log {
        records: Mutex<Vec<Outgoing>>,
        is_away: AtomicBool,
    }

    #[async_trait]
    impl Appender for Log {
        async fn append(&self, records: Vec<Outgoing>) -> Result<(), LogError> {
            self.check().await?;
            self.records.lock().expect("whole").extend(records);
            Ok(())
        }

        async fn check(&self) -> Result<(), LogError> {
            let away = || LogError::Away { operation: "append", source: "gone".into() };
            if self.is_away.load(Ordering::SeqCst) { Err(away()) } else { Ok(()) }
        }
    }

    struct Site {
        bench: Bench,
        log: Arc<Log>,
        app: Router,
        key: String,
    }

    impl Site {
        async fn new() -> Site {
            let (bench, log) = (Bench::new(), Arc::new(Log::default()));
            let door = bench.door("1000/min");
            let collect = Collect::new(log.clone(), bench.clock());
            let app = edge::app(router(Arc::new(collect), &door), &door);
            let key = bench.key("acme", &[Permission::EventsWrite, Permission::ReferencesWrite]).await;
            Site { bench, log, app, key }
        }

        async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
            let request = request("POST", path, &self.key);
            let request =
                headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            send(&self.app, request.body(body.into()).expect("a request")).await
        }

        async fn post_json(&self, body: impl Into<Body>) -> Answer {
            self.post("/v1/events", &[("content-type", "application/json")], body).await
        }

        fn values(&self) -> Vec<String> {
            let records = self.log.records.lock().expect("whole");
            let text = |record: &Outgoing| {
                String::from_utf8(record.value.clone().unwrap_or_default()).expect("text")
            };
            records.iter().map(text).collect()
        }
    }

    fn event(id: &str) -> String {
        format!(r#"{{"id":"{id}","type":"open","occurred_at":"2026-04-17T14:23:05Z","message_id":"m"}}"#)
    }

    const LINES: &[(&str, &str)] = &[("content-type", "application/x-ndjson")];

    #[tokio::test]
    async fn what_is_good_is_taken_in_and_what_is_bad_is_named() {
        let site = Site::new().await;
        let answer = site.post_json(event("one")).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (202, r#"{"accepted":1,"rejected":[]}"#));
        assert_eq!(answer.header("x-ratelimit-remaining"), "999");
        assert_eq!(site.values(), [event("one").replacen('{', r#"{"account_id":"acme","#, 1)]);

        let foreign = event("two").replacen('{', r#"{"account_id":"globex","#, 1);
        let answer = site.post_json(format!("[{foreign}, 5, {}]", event("three"))).await;
        assert_eq!(answer.status, 202);
        let json = answer.json();
        assert_eq!(json["accepted"], 1);
        assert_eq!(
            json["rejected"][0].to_string(),
            r#"{"index":0,"code":"foreign_account","message":"'account_id' is not the account of the key"}"#
        );
        assert_eq!(
            (&json["rejected"][1]["index"], &json["rejected"][1]["code"]),
            (&1.into(), &"malformed_json".into())
        );

        let lines = format!("{}\n\n{{\n{}\n", event("four"), event("five"));
        let answer = site.post("/v1/events", LINES, lines).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["accepted"]), (202, &2.into()));
        assert_eq!(answer.json()["rejected"][0]["index"], 1);
        assert_eq!(site.values().len(), 4);
    }

    #[tokio::test]
    async fn nothing_accepted_is_400_with_an_error() {
        let site = Site::new().await;
        let error = r#""error":{"code":"nothing_accepted","message":"Nothing was accepted"}"#;
        let answer = site.post_json("[]").await;
        assert_eq!(
            (answer.status.as_u16(), answer.text()),
            (400, format!(r#"{{"accepted":0,"rejected":[],{error}}}"#).as_str())
        );
        for body in ["", "{", "[{}", "[{}]", "null", "{}"] {
            let answer = site.post_json(body).await;
            assert_eq!(answer.status, 400, "{body}");
            assert!(
                answer.text().starts_with(r#"{"accepted":0,"rejected":[{"index":0,"code":""#),
                "{}",
                answer.text()
            );
            assert!(answer.text().ends_with(&format!("{error}}}")), "{}", answer.text());
        }
        assert!(site.values().is_empty());
    }

    #[tokio::test]
    async fn references_are_keyed_and_deleted() {
        let site = Site::new().await;
        let body = r#"{"kind":"list","id":"l","name":"News"}
                      {"kind":"list","id":"l","deleted":true}"#;
        // As `curl -d` sends it.
        let form = [("content-type", "application/x-www-form-urlencoded")];
        let answer = site.post("/v1/references", &form, body).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (202, r#"{"accepted":2,"rejected":[]}"#));
        let records = site.log.records.lock().expect("whole").clone();
        let key = Some(b"list:acme:l".to_vec());
        let named = br#"{"account_id":"acme","kind":"list","id":"l","name":"News"}"#.to_vec();
        assert_eq!(records[0], Outgoing::new(Topic::References, key.clone(), Some(named)));
        assert_eq!(records[1], Outgoing::new(Topic::References, key, None));
    }

    #[tokio::test]
    async fn keys_need_the_permission_of_the_route() {
        let site = Site::new().await;
        let events_only = site.bench.key("acme", &[Permission::EventsWrite]).await;
        for (path, key, status, code) in [
            ("/v1/events", "", 401, "invalid_key"),
            ("/v1/references", events_only.as_str(), 403, "insufficient_permissions"),
            ("/v1/events", events_only.as_str(), 400, "nothing_accepted"),
        ] {
            let answer =
                send(&site.app, request("POST", path, key).body(Body::empty()).expect("a request")).await;
            assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code), "{path}");
        }
    }

    #[tokio::test]
    async fn too_large_and_unreadable_bodies_have_their_status_and_all_headers() {
        let site = Site::new().await;
        let length = (BODY_BYTES_MAX + 1).to_string();
        let streamed = Body::from_stream(futures::stream::iter(
            (0..9).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1 << 20])),
        ));
        for (headers, body, status, code) in [
            (vec![("content-length", length.as_str())], Body::empty(), 413, "payload_too_large"),
            (vec![], streamed, 413, "payload_too_large"),
            (vec![("content-encoding", "gzip")], Body::from("x"), 415, "unsupported_media_type"),
            (vec![("content-type", "text/plain")], Body::from("{}"), 415, "unsupported_media_type"),
        ] {
            let answer = site.post("/v1/events", &headers, body).await;
            assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code));
            assert_eq!(answer.header("x-ratelimit-limit"), "1000");
            assert_eq!(answer.header("x-request-id").len(), 36);
        }
        let spaces = " ".repeat(BODY_BYTES_MAX - event("e").len());
        assert_eq!(site.post_json(event("e") + &spaces).await.status, 202);
    }

    #[tokio::test]
    async fn a_flood_of_bad_records_is_cut_and_nothing_of_it_taken() {
        let site = Site::new().await;
        let answer = site.post("/v1/events", LINES, event("good") + &"\n5".repeat(REJECTED_MAX + 5)).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["accepted"]), (400, &0.into()));
        assert_eq!(answer.json()["rejected"].as_array().map(Vec::len), Some(REJECTED_MAX + 1));
        assert!(site.values().is_empty());
    }

    #[tokio::test]
    async fn many_records_are_taken_in_their_order() {
        let site = Site::new().await;
        let ids: Vec<String> = (0..20_000).map(|n| format!("e{n}")).collect();
        let body = ids.iter().map(|id| event(id)).collect::<Vec<_>>().join(",");
        assert_eq!(site.post_json(format!("[{body}]")).await.json()["accepted"], 20_000);
        assert!(site.values().iter().zip(&ids).all(|(value, id)| value.contains(&format!(r#""id":"{id}""#))));
    }

    #[tokio::test]
    async fn without_the_log_it_is_503() {
        let site = Site::new().await;
        site.log.is_away.store(true, Ordering::SeqCst);
        let answer = site.post_json(event("one")).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "unavailable"));
        assert_ne!(answer.header("retry-after"), "");
        assert!(!answer.text().contains("gone"));
        // What is bad is told all the same.
        assert_eq!(site.post_json("{}").await.status, 400);
    }
}
