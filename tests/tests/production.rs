//! What runs Backstamp in production: dashboards on a real Prometheus, a rolling restart behind a real HAProxy, logs, and the files of
//! `deploy/`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod production {
    mod dashboards;
    mod files;
    mod load;
    mod logs;
    mod pictures;
    mod rolling;
    mod traces;
}
