//! Queries, paths, keys and bodies, through the routes as they are served, on an embedded store with a few rows in it. Every answer
//! has a documented status and form, and what the intake takes is what the topic's decoders take.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, Uri, header};
use collect::Collect;
use edge::Keys;
use edge::testing::{Answer, Bench, send};
use event_log::{Appender, LogError, Outgoing, Topic};
use event_store::{EventStore, RowGroup, RowWrite};
use fuzz::{Run, Target};
use query::Query;
use serde_json::Value;
use timeline::event::decode_event;
use timeline::key::{KEY_RANDOM_BYTES, Permission, digest_key, format_key, key_id};
use timeline::reference::decode_reference;
use timeline::row::{Placing, project};
use timeline::tally::FIRST_PART;
use timeline::time::DAY_MS;
use tokio::runtime::Runtime;

use crate::decoders::{self, messages};
use crate::{NOW, hold, same};

const ACCOUNT: &str = "acme";
const CONTACT: &str = "123e4567-e89b-12d3-a456-426614174000";
const EVENTS: i64 = 30;

const QUERY_WORDS: &[&str] = &[
    "page=",
    "per_page=",
    "type=",
    "type_group=",
    "contact_id=",
    "from_date=",
    "to_date=",
    "from=",
    "to=",
    "opened",
    "clicked",
    "unsubscribed",
    "purchased",
    "engagement",
    "delivery",
    "2026-09-20",
    "2026-02-30",
    "2147483648",
    "2147483649",
    "T10:00:00Z",
    "+02:00",
    "%2B02:00",
    ".999999999",
    ".1230000000001",
    "%61",
    "%f0%9f%93%a7",
    "&",
    "=",
    "123e4567-e89b-12d3-a456-426614174000",
    "0001-01-01",
    "9999-12-31",
];

pub(crate) fn targets() -> Vec<Target> {
    let query = |name, start| Target {
        name,
        seeds: || {
            [
                "page=2&per_page=3",
                "type=opened&contact_id=123e4567-e89b-12d3-a456-426614174000",
                "from_date=2026-09-20T00:00:00%2B02:00&to_date=2026-09-21",
                "from_date=2026-09-20T00:00:00+02:00&to_date=2026-09-21T01:02:03.9999999999Z&page=1&page=1",
                "type=clicked&type_group=engagement&from=2026-09-01&to=2026-09-30",
                "type=opened&type=clicked&page=0&per_page=-1",
                "type=%ff&%zz=%&&=&page",
            ]
            .map(|text| text.as_bytes().to_vec())
            .to_vec()
        },
        words: QUERY_WORDS,
        bytes_max: 1024,
        start,
    };
    vec![
        query("campaign_queries", || start_query("/v1/campaigns/cmp/events")),
        query("contact_queries", || start_query("/contacts/123e4567-e89b-12d3-a456-426614174000/events")),
        Target {
            name: "paths",
            seeds: || {
                [
                    "/v1/campaigns/cmp/events?page=1",
                    "/functions/v1/api-gateway/v1/campaigns/a%2Fb/events",
                    "/contacts/123e4567-e89b-12d3-a456-426614174000/events",
                    "/api/v1/contacts/%ff/events?from=2026-09-01",
                    "/v1/events",
                    "/v1/references",
                    "//v1/../x?",
                ]
                .map(|text| text.as_bytes().to_vec())
                .to_vec()
            },
            words: &[
                "/v1/",
                "campaigns",
                "contacts",
                "events",
                "/",
                "%2F",
                "%00",
                "..",
                "//",
                "?",
                "cmp",
                "api",
            ],
            bytes_max: 1024,
            start: start_paths,
        },
        Target {
            name: "keys",
            seeds: keys,
            words: &["Bearer ", "wbk_", " ", "Basic "],
            bytes_max: 256,
            start: start_keys,
        },
        Target {
            name: "intake",
            seeds: intake,
            words: decoders::WORDS,
            bytes_max: 8192,
            start: start_intake,
        },
    ]
}

/// The routes, a key that opens all of them, and what the intake appended.
struct Site {
    runtime: Runtime,
    bench: Bench,
    app: Router,
    key: String,
    log: Arc<Log>,
}

/// A log in memory.
#[derive(Default)]
struct Log(Mutex<Vec<Outgoing>>);

#[async_trait]
impl Appender for Log {
    async fn append(&self, records: Vec<Outgoing>) -> Result<(), LogError> {
        self.0.lock().expect("whole").extend(records);
        Ok(())
    }

    async fn check(&self) -> Result<(), LogError> {
        Ok(())
    }
}

impl Site {
    fn new() -> Site {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (bench, log) = (Bench::new(), Arc::new(Log::default()));
        bench.pass_ms(NOW.0 - bench.now().0);
        let key = runtime.block_on(async {
            for number in 0..EVENTS {
                write_event(&bench, number).await;
            }
            bench.key(ACCOUNT, &Permission::ALL).await
        });
        let door = bench.door("off");
        let query = Query::new(bench.store.clone(), bench.clock(), 180);
        let collect = Collect::new(log.clone(), bench.clock());
        let routes = query::router(Arc::new(query), &door).merge(collect::router(Arc::new(collect), &door));
        Site { app: edge::app(routes, &door), runtime, bench, key, log }
    }

    /// The answer to a request with the key; `None` where a server would not take the target.
    fn ask(&self, method: &str, target: &[u8], content_type: &[u8], body: &[u8]) -> Option<Answer> {
        let uri = Uri::try_from(target).ok().filter(|uri| uri.path().starts_with('/'))?;
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.key));
        if !content_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, HeaderValue::from_bytes(content_type).ok()?);
        }
        let request = request.body(Body::from(body.to_vec())).ok()?;
        Some(self.runtime.block_on(send(&self.app, request)))
    }
}

async fn write_event(bench: &Bench, number: i64) {
    let kind = ["open", "click", "bounce", "unsubscribe", "subscribe"][number as usize % 5];
    let json = format!(
        r#"{{"id":"e{number}","account_id":"{ACCOUNT}","type":"{kind}","occurred_at":"2026-09-{:02}T10:00:00.{:03}Z","contact_id":"{CONTACT}","campaign_id":"cmp","url":"https://a.example/"}}"#,
        1 + number % 20,
        number * 7
    );
    let event = decode_event(json.as_bytes(), NOW).expect("valid");
    for row in project(&event, NOW, Placing::Complete) {
        let store = &bench.store;
        store.mark_known(std::slice::from_ref(&row.timeline)).await.expect("marked");
        let expires_at = event.at.plus_ms(200 * DAY_MS);
        let write = RowWrite { key: row.key, stamp: row.stamp, expires_at, body: row.body, is_new: false };
        let group = RowGroup { timeline: &row.timeline, part: FIRST_PART, rows: vec![write] };
        store.write_rows(NOW, &[group]).await.expect("written");
    }
}

fn start_query(path: &'static str) -> Run {
    let site = Site::new();
    Box::new(move |bytes| {
        let target = [path.as_bytes(), b"?", bytes].concat();
        site.ask("GET", &target, b"", b"").map_or(Ok("no target"), |answer| judge(&answer))
    })
}

fn start_paths() -> Run {
    let site = Site::new();
    Box::new(move |bytes| {
        for method in ["OPTIONS", "POST", "HEAD"] {
            if let Some(answer) = site.ask(method, bytes, b"", b"") {
                hold(answer.status.as_u16() < 500, || format!("{method}: {answer:?}"))?;
            }
        }
        site.ask("GET", bytes, b"", b"").map_or(Ok("no target"), |answer| judge(&answer))
    })
}

/// What a read may answer.
fn judge(answer: &Answer) -> Result<&'static str, String> {
    const CODES: [(&str, u16); 7] = [
        ("invalid_parameter", 400),
        ("invalid_event_type", 400),
        ("VALIDATION_ERROR", 422),
        ("campaign_not_found", 404),
        ("RESOURCE_NOT_FOUND", 404),
        ("not_found", 404),
        ("method_not_allowed", 405),
    ];
    let json: Value = serde_json::from_slice(&answer.body).map_err(|error| format!("{error}: {answer:?}"))?;
    if answer.status != 200 {
        let given = json["error"]["code"].as_str().unwrap_or_default();
        let known = CODES.iter().find(|(code, status)| *code == given && answer.status == *status);
        return known.map(|(code, _)| *code).ok_or_else(|| format!("{answer:?}"));
    }
    let (rows, meta) = match json["data"]["events"].as_array() {
        Some(rows) => (rows, &json["meta"]),
        None => (json["data"].as_array().ok_or("no rows")?, &json["pagination"]),
    };
    let number = |name: &str| meta[name].as_u64().ok_or_else(|| format!("no {name}: {json}"));
    let (per_page, total) = (number("per_page")?, number("total")?);
    let page = number("page").or_else(|_| number("current_page"))?;
    let before = (page - 1).saturating_mul(per_page);
    hold((1..=100).contains(&per_page) && total <= EVENTS as u64, || format!("{meta}"))?;
    same("the rows of the page", &(rows.len() as u64), &per_page.min(total.saturating_sub(before)))?;
    for link in answer.header("link").split(", ") {
        let target =
            link.strip_prefix('<').and_then(|link| link.split_once(">; rel=")).map(|(target, _)| target);
        let is_sound = target.is_some_and(|target| Uri::try_from(target).is_ok() && target.contains("page="));
        hold(is_sound, || format!("{link} is no link"))?;
    }
    Ok(if rows.is_empty() { "empty page" } else { "page" })
}

fn keys() -> Vec<Vec<u8>> {
    let key = format_key(&[0; KEY_RANDOM_BYTES]);
    [format!("Bearer {key}"), format!("bearer  {key} "), format!("Basic {key}"), key, "Bearer".to_owned()]
        .map(String::into_bytes)
        .to_vec()
}

fn start_keys() -> Run {
    let site = Site::new();
    let keys = Keys::new(site.bench.store.clone(), site.bench.clock());
    let real = site.key.clone();
    Box::new(move |bytes| {
        // Bytes as a key: it is told from what is nearly it.
        if let Some(random) = bytes.first_chunk::<KEY_RANDOM_BYTES>() {
            let key = format_key(random);
            let digest = digest_key(&key).ok_or_else(|| format!("{key} is no key"))?;
            hold(key_id(&digest).len() == 16, || key_id(&digest))?;
            let at = 4 + bytes.len() % (key.len() - 4);
            let mut mistyped = key.clone().into_bytes();
            mistyped[at] = if mistyped[at] == b'0' { b'1' } else { b'0' };
            let mistyped = String::from_utf8(mistyped).expect("text");
            same("a mistyped key", &digest_key(&mistyped), &None)?;
        }
        // And as what stands in the header.
        let Ok(value) = HeaderValue::from_bytes(bytes) else { return Ok("no value") };
        let headers: HeaderMap = [(header::AUTHORIZATION, value)].into_iter().collect();
        let opens = site.runtime.block_on(keys.authenticate(&headers)).is_ok();
        let text = String::from_utf8_lossy(bytes);
        let is_real = text.split_once(' ').is_some_and(|(scheme, token)| {
            scheme.eq_ignore_ascii_case("bearer") && token.trim_matches(' ') == real
        });
        same(&format!("whether {text} opens"), &opens, &is_real)?;
        Ok(if opens { "opens" } else { "does not open" })
    })
}

/// `e` or `r`, a content type, a line's end, a body.
fn intake() -> Vec<Vec<u8>> {
    let body = |kind: u8, content_type: &str, body: &[u8]| {
        [&[kind][..], content_type.as_bytes(), b"\n", body].concat()
    };
    let mut all = Vec::new();
    for (kind, name) in [(b'e', "events"), (b'r', "references")] {
        let records: Vec<Vec<u8>> = messages(name)
            .into_iter()
            .map(|(_, record)| record)
            .filter(|record| record.len() < 1000)
            .collect();
        all.extend(records.iter().map(|record| body(kind, "application/json", record)));
        let some: Vec<Vec<u8>> = records.into_iter().take(3).collect();
        let array = [b"[".to_vec(), some.join(&b','), b"]".to_vec()].concat();
        all.push(body(kind, "application/json; charset=utf-8", &array));
        all.push(body(kind, "application/x-ndjson", &some.join(&b'\n')));
        all.push(body(kind, "", &some.join(&b'\n')));
        all.push(body(kind, "text/plain", b"{}"));
    }
    all
}

fn start_intake() -> Run {
    let site = Site::new();
    Box::new(move |bytes| {
        let (kind, rest) = bytes.split_first().unwrap_or((&b'e', &[]));
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(0);
        let (content_type, body) = (&rest[..end], rest.get(end + 1..).unwrap_or_default());
        let (path, topic) = match kind {
            b'r' => ("/v1/references", Topic::References),
            _ => ("/v1/events", Topic::Events),
        };
        let answer = site.ask("POST", path.as_bytes(), content_type, body);
        let appended = std::mem::take(&mut *site.log.0.lock().expect("whole"));
        let Some(answer) = answer else { return Ok("no request") };
        for record in &appended {
            same("a record's topic", &record.topic, &topic)?;
            let (key, value) = (record.key.as_deref(), record.value.as_deref());
            let account = match topic {
                Topic::Events => decode_event(value.unwrap_or_default(), NOW).map(|event| event.account),
                _ => decode_reference(key, value).map(|reference| reference.key.account),
            };
            same("a record's account", &account.map(|account| account.to_string()), &Ok(ACCOUNT.to_owned()))?;
        }
        let json: Value =
            serde_json::from_slice(&answer.body).map_err(|error| format!("{error}: {answer:?}"))?;
        let status = answer.status.as_u16();
        if status == 415 {
            hold(appended.is_empty(), || format!("{answer:?}"))?;
            return Ok("415");
        }
        same("what was accepted", &json["accepted"].as_u64(), &Some(appended.len() as u64))?;
        same("the status", &status, &if appended.is_empty() { 400 } else { 202 })?;
        let rejected = json["rejected"].as_array().ok_or("nothing about rejections")?;
        for rejection in rejected {
            let code = rejection["code"].as_str().unwrap_or_default();
            let known = [
                "malformed_json",
                "missing_field",
                "invalid_field",
                "unknown_type",
                "invalid_time",
                "time_ahead",
            ];
            let more = ["unknown_kind", "too_large", "foreign_account"];
            hold(known.contains(&code) || more.contains(&code), || format!("{rejection}"))?;
        }
        Ok(match (appended.is_empty(), rejected.is_empty()) {
            (false, true) => "taken",
            (false, false) => "some taken",
            (true, _) => "nothing taken",
        })
    })
}
