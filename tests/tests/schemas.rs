//! The schemas hold: for every example, and for what the running program answers.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod schemas {
    mod api;
    mod examples;
    mod openapi;
}
