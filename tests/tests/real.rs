//! The tests on real servers: one program of them, so that the servers start once.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod real {
    mod contract;
    mod dead_letters;
    mod freshness;
    mod log;
    mod model;
    mod operate;
    mod smoke;
    mod store;
}
