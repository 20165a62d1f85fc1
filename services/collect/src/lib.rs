//! HTTP intake: events and references come in by POST and go to the event log as they came.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `intake` | the two routes: body in, records out, the answer |
//! | `body` | reading a body within its bounds |
//! | `split` | a body taken apart into records |
//! | `record` | one record judged, and made ready for the log |

mod body;
mod intake;
mod record;
mod split;

use std::sync::Arc;

use axum::Router;
use edge::{Clock, Door, Style};
use event_log::Appender;
use timeline::key::Permission;

use crate::body::Room;

/// The largest body, in bytes.
pub const BODY_BYTES_MAX: usize = 8 << 20;
/// How many bytes of bodies may be in work at a time. Beyond that a request is answered 503.
pub const BODIES_BYTES_MAX: usize = 64 << 20;
/// How many records of one request may be rejected. With more of them nothing of it is accepted: an answer has to end.
pub const REJECTED_MAX: usize = 10_000;

/// What takes events and references in.
pub struct Collect {
    appender: Arc<dyn Appender>,
    clock: Clock,
    room: Room,
}

impl Collect {
    /// Takes in for `appender`.
    pub fn new(appender: Arc<dyn Appender>, clock: Clock) -> Collect {
        Collect { appender, clock, room: Room::new(BODIES_BYTES_MAX) }
    }
}

/// All routes, behind `door`.
pub fn router(collect: Arc<Collect>, door: &Door) -> Router {
    Router::new()
        .route("/v1/events", door.writing(Style::Campaign, Permission::EventsWrite, intake::take_events))
        .route(
            "/v1/references",
            door.writing(Style::Campaign, Permission::ReferencesWrite, intake::take_references),
        )
        .with_state(collect)
}
