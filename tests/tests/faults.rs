//! Nothing lost, nothing doubled, whatever fails: on real servers, under load, each with its ledger balanced at the end.
//!
//! `cargo test` runs each of them small. `BACKSTAMP_FAULTS=all cargo test --test faults -- --test-threads=1 --nocapture` runs them
//! whole, and prints what each came to; `docs/faults.md` says what each does.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod faults {
    mod dead_letters;
    mod disk;
    mod hot_campaign;
    mod kills;
    mod members;
    mod own_servers;
    mod pauses;
    mod proxies;
    mod recreation;
    mod replay;
    mod retention;
    mod scene;
    mod servers;
    mod shutdown;
}
