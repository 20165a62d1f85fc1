//! `POST /v1/events` and `POST /v1/references`. The answer comes once everything that was accepted is durable.

use std::error::Error;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use edge::{Access, Problem};
use event_log::{LogError, Outgoing};
use serde::Serialize;
use telemetry::metrics::INTAKE;
use timeline::{AccountId, Refusal, Timestamp};

use crate::body::Held;
use crate::record::Kind;
use crate::split::{Form, split};
use crate::{Collect, REJECTED_MAX};

/// Bodies above this are judged on a thread of their own, in bytes: a large one keeps a core busy for a tenth of a second.
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
    let (_room, Judged { accepted, rejected }) = judge_held(kind, form, body, access.account(), now).await?;
    let count = accepted.len();
    if count > 0 {
        collect.appender.append(accepted).await.map_err(|error| unavailable(&error))?;
        INTAKE.with_label_values(&[kind.label(), "accepted"]).inc_by(count as u64);
    }
    for rejection in &rejected {
        INTAKE.with_label_values(&[kind.label(), rejection.code]).inc();
    }
    let answer = Answer { accepted: count, rejected, error: (count == 0).then_some(NOTHING_ACCEPTED) };
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
        if judged.rejected.len() >= REJECTED_MAX {
            judged.accepted.clear();
            break;
        }
    }
    judged
}

/// The log's failure is logged here, and goes no further.
fn unavailable(error: &LogError) -> Problem {
    let mut causes = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        causes.push_str(": ");
        causes.push_str(&error.to_string());
        cause = error.source();
    }
    tracing::warn!(operation = error.operation(), error = format!("{error}{causes}"), "the event log failed");
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

const NOTHING_ACCEPTED: NothingAccepted =
    NothingAccepted { code: "nothing_accepted", message: "Nothing was accepted" };
