//! Everything is replayed from the first record, three times over: rows and tallies stay byte for byte what they were, and no
//! row lives longer than it did.

use std::collections::BTreeMap;

use backstamp_tests::ledger::read_all;
use backstamp_tests::unique_name;
use chrono::Utc;

use super::scene::{Scene, sized};

const REPLAYS: usize = 3;
/// Times to live are whole seconds, cut where they are written and where they are read, and reading takes a while.
const ROUNDED_S: i64 = 5;

/// Account, subject, part, type, time and id of a row.
type RowKey = (String, String, i32, i8, i64, String);
/// Its body, when it was written, and when it expires, in seconds since 1970.
type Row = (Vec<u8>, i64, i64);
/// Account, subject and number of a tally cell.
type Cell = (String, String, i32);

struct Stored {
    rows: BTreeMap<RowKey, Row>,
    tallies: BTreeMap<Cell, Option<Vec<u8>>>,
}

/// What is stored of the accounts whose names do not start with `other`.
async fn stored(scene: &Scene) -> Stored {
    type Read = (String, String, i32, i8, i64, String, Vec<u8>, i64, i32);
    let select =
        "SELECT account_id, subject, part, type, occurred_at, event_id, body, writetime(body), ttl(body)
        FROM keyspace.timeline_rows";
    let now = Utc::now().timestamp();
    let rows = read_all::<Read>(&scene.deployment, select).await.into_iter();
    let rows = rows.map(|(account, subject, part, kind, at, id, body, written, ttl)| {
        ((account, subject, part, kind, at, id), (body, written, now + i64::from(ttl)))
    });
    type ReadCell = (String, String, i32, Option<Vec<u8>>);
    let select = "SELECT account_id, subject, cell, bytes FROM keyspace.tallies";
    let tallies = read_all::<ReadCell>(&scene.deployment, select).await.into_iter();
    let tallies = tallies.map(|(account, subject, cell, bytes)| ((account, subject, cell), bytes));
    let is_ours = |account: &str| !account.starts_with("other");
    Stored {
        rows: rows.filter(|((account, ..), _)| is_ours(account)).collect(),
        tallies: tallies.filter(|((account, ..), _)| is_ours(account)).collect(),
    }
}

#[tokio::test]
async fn a_replay_from_the_first_record_changes_no_byte_and_lengthens_no_life() {
    let mut scene = Scene::new(5600, sized(3000, 60_000)).await;
    let live = scene.another_history(sized(1000, 20_000)).await;
    let mut ingest = scene.deployment.ingest().await;
    scene.deployment.publish(&scene.trial.history.records, &mut scene.sender_rng).await;
    let records = scene.records().to_vec();
    scene.balance(&records, &[], "before the replays").await;
    let before = stored(&scene).await;
    assert!(!before.rows.is_empty() && before.tallies.values().flatten().count() > 0);

    let mut published = Vec::new();
    let slices = live.history.records.chunks(live.history.records.len().div_ceil(REPLAYS));
    for (replay, slice) in (1..).zip(slices) {
        assert!(ingest.sigterm_and_wait().await.success());
        // A new group starts at the first record, of the internal topic too.
        scene.deployment.group = unique_name("replay");
        let Scene { deployment, sender_rng, .. } = &mut scene;
        let replaying = async {
            ingest = deployment.ingest().await;
            deployment.wait_for_progress().await;
        };
        deployment.under_load(slice, sender_rng, replaying).await;
        published.extend_from_slice(slice);
        scene.deployment.wait_until_done().await;
        let after = stored(&scene).await;
        is_unchanged(&before, &after, replay);
    }
    scene.trial.keys.extend(live.keys);
    let all = [records, published].concat();
    let what = format!(
        "{REPLAYS} replays, {} rows and {} cells each the same",
        before.rows.len(),
        before.tallies.len()
    );
    scene.balance(&all, &[], &what).await;
    scene.clear_up().await;
}

fn is_unchanged(before: &Stored, after: &Stored, replay: usize) {
    assert!(before.rows.keys().eq(after.rows.keys()), "other rows after replay {replay}");
    for (key, (body, written, expires)) in &before.rows {
        let (body_after, written_after, expires_after) = &after.rows[key];
        assert_eq!((body, written), (body_after, written_after), "after replay {replay}: {key:?}");
        assert!(
            *expires_after <= expires + ROUNDED_S,
            "after replay {replay} it lives {} s longer: {key:?}",
            expires_after - expires
        );
    }
    assert!(before.tallies == after.tallies, "other tallies after replay {replay}");
}
