use std::collections::BTreeMap;

use proptest::prelude::*;
use timeline::{EventType, Position};

use super::*;
use crate::{RowWrite, conformance};

fn store() -> (tempfile::TempDir, EmbeddedStore) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = EmbeddedStore::open(directory.path()).expect("a new store");
    (directory, store)
}

fn now() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("past 1970");
    Timestamp(i64::try_from(since_epoch.as_millis()).expect("within reason"))
}

fn campaign(name: &str) -> TimelineId {
    TimelineId::campaign(&AccountId::parse("a").expect("valid"), &Id::parse(name).expect("valid"))
}

fn row(at: i64, id: &str, stamp: i64, expires_at: i64) -> RowWrite {
    let key = RowKey { position: Position { at: Timestamp(at), id: id.into() }, event_type: EventType::Sent };
    RowWrite {
        key,
        stamp,
        expires_at: Timestamp(expires_at),
        body: stamp.to_le_bytes().to_vec(),
        is_new: false,
    }
}

async fn write(store: &EmbeddedStore, now: i64, rows: Vec<RowWrite>) {
    let timeline = campaign("c");
    let group = RowGroup { timeline: &timeline, part: 0, rows };
    store.write_rows(Timestamp(now), &[group]).await.expect("written");
}

async fn read(store: &EmbeddedStore) -> Vec<StoredRow> {
    read_span(store, &Span::all()).await
}

async fn read_span(store: &EmbeddedStore, span: &Span) -> Vec<StoredRow> {
    store.read_rows(&campaign("c"), 0, TypeSet::ALL, span, Columns::All, usize::MAX).await.expect("read")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_conforms() {
    let (_directory, store) = store();
    // What the other stores' servers do by themselves.
    let sweeping = tokio::spawn({
        let store = store.clone();
        async move {
            loop {
                store.sweep(now()).await.expect("swept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    });
    conformance::run(Arc::new(store), "embedded").await;
    sweeping.abort();
}

#[tokio::test]
async fn the_first_of_two_equal_writes_stays() {
    let (_directory, store) = store();
    let first = row(1, "e", 5, 1000);
    let second = RowWrite { body: b"second".to_vec(), ..first.clone() };
    write(&store, 0, vec![first.clone(), second.clone()]).await;
    write(&store, 0, vec![second]).await;
    assert_eq!(read(&store).await[0].body, first.body);
}

#[tokio::test]
async fn a_directory_has_one_process() {
    let (directory, _store) = store();
    let error = EmbeddedStore::open(directory.path()).map(|_| ()).expect_err("held");
    let expected = format!(
        "the store failed at open: another process holds the store in {}",
        directory.path().display()
    );
    assert_eq!(error.chain().to_string(), expected);
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let (directory, store) = store();
    write(&store, 0, vec![row(1, "e", 5, 1000)]).await;
    store.commit_offset(7).await.expect("committed");
    assert_eq!(store.take_epoch("t/0").await.expect("taken"), 1);
    store.persist().await.expect("durable");
    drop(store);
    let store = EmbeddedStore::open(directory.path()).expect("opened again");
    assert_eq!(read(&store).await.len(), 1);
    assert_eq!(store.committed_offset().await.expect("read"), 7);
    assert_eq!(store.take_epoch("t/0").await.expect("taken"), 2);
}

#[tokio::test]
async fn no_offset_was_committed_in_a_new_store() {
    let (_directory, store) = store();
    assert_eq!(store.committed_offset().await.expect("read"), 0);
}

#[tokio::test]
async fn a_sweep_goes_through_all_steps() {
    let (_directory, store) = store();
    let count = 2 * SWEEP_STEP_KEYS + 5;
    let rows = (0..).take(count).map(|at| row(at, "e", 1, 10 + at % 2));
    write(&store, 0, rows.collect()).await;
    let swept = store.sweep(Timestamp(10)).await.expect("swept");
    let (all, half) = (count as u64, count as u64 / 2);
    assert_eq!(swept, Swept { seen: all, removed: half + 1 });
    assert_eq!(read(&store).await.len() as u64, half);
    let swept = store.sweep(Timestamp(11)).await.expect("swept");
    assert_eq!(swept, Swept { seen: half, removed: half });
}

#[tokio::test]
async fn lives_without_an_end_begin_with_a_sweep() {
    let (_directory, store) = store();
    let tallies =
        TallyWrite { timeline: campaign("c"), stamp: 1, ttl_s: 2, cells: vec![(0, b"root".to_vec())] };
    store.write_tallies(&[tallies]).await.expect("written");
    let gone = row(1, "e", 5, 100_000_000_000);
    store.delete_rows(&campaign("c"), 0, std::slice::from_ref(&gone.key), 5).await.expect("deleted");
    let swept = async |now| store.sweep(Timestamp(now)).await.expect("swept").removed;
    assert_eq!(swept(1_000_000).await, 0);
    assert_eq!(swept(1_001_999).await, 0);
    assert_eq!(swept(1_002_000).await, 1, "the tally's life is over");
    assert_eq!(store.read_tallies(&campaign("c"), &[0]).await.expect("read"), [None]);
    write(&store, 0, vec![gone.clone()]).await;
    assert_eq!(read(&store).await, [], "the mark of a deleted row is kept");
    let kept_ms = i64::try_from(EmbeddedConfig::default().deleted_kept.as_millis()).expect("fits");
    assert_eq!(swept(1_000_000 + kept_ms).await, 1);
    write(&store, 0, vec![gone]).await;
    assert_eq!(read(&store).await.len(), 1, "and forgotten at last");
}

/// What may be done to rows; times are small, so that they meet.
#[derive(Clone, Debug)]
enum Op {
    Write { now: i64, rows: Vec<(i64, char, i64, i64)> },
    Delete { at: i64, id: char, stamp: i64 },
    Sweep { now: i64 },
    Read { from: (i64, String), until: (i64, String) },
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let id = || prop::char::range('a', 'c');
    let bound = || (0_i64..4, "[a-c]{0,1}");
    prop_oneof![
        4 => (0_i64..9, prop::collection::vec((0_i64..4, id(), 0_i64..5, 0_i64..9), 0..6))
            .prop_map(|(now, rows)| Op::Write { now, rows }),
        2 => (0_i64..4, id(), 0_i64..5).prop_map(|(at, id, stamp)| Op::Delete { at, id, stamp }),
        1 => (0_i64..9).prop_map(|now| Op::Sweep { now }),
        3 => (bound(), bound()).prop_map(|(from, until)| Op::Read { from, until }),
        1 => Just(Op::Reopen),
    ]
}

/// A row's stamp, end and whether it is deleted.
type Model = BTreeMap<(i64, String), (i64, i64, bool)>;

async fn agrees_with_the_model(ops: Vec<Op>) {
    let (directory, store) = store();
    let mut store = Some(store);
    let mut model = Model::new();
    for op in ops {
        let open = store.as_ref().expect("open");
        match op {
            Op::Write { now, rows } => {
                let written = rows.iter().map(|(at, id, stamp, end)| row(*at, &id.to_string(), *stamp, *end));
                write(open, now, written.collect()).await;
                for (at, id, stamp, end) in rows.into_iter().filter(|row| now < row.3) {
                    let there = model.entry((at, id.to_string())).or_insert((i64::MIN, 0, true));
                    if stamp > there.0 {
                        *there = (stamp, end, false);
                    }
                }
            }
            Op::Delete { at, id, stamp } => {
                let key = row(at, &id.to_string(), 0, 0).key;
                open.delete_rows(&campaign("c"), 0, &[key], stamp).await.expect("deleted");
                let there = model.entry((at, id.to_string())).or_insert((i64::MIN, 0, true));
                if stamp >= there.0 {
                    *there = (stamp, i64::MAX, true);
                }
            }
            Op::Sweep { now } => {
                open.sweep(Timestamp(now)).await.expect("swept");
                model.retain(|_, (_, end, _)| now < *end);
            }
            Op::Read { from, until } => {
                let bound =
                    |(at, id): &(i64, String)| Position { at: Timestamp(*at), id: id.as_str().into() };
                let span = Span { from: bound(&from), until: bound(&until) };
                let found = read_span(open, &span).await;
                let expected: Vec<StoredRow> = model
                    .iter()
                    .rev()
                    .filter(|(key, (_, _, deleted))| !deleted && span.contains(&bound(key)))
                    .map(|((at, id), (stamp, _, _))| {
                        let row = row(*at, id, *stamp, 0);
                        StoredRow { key: row.key, body: row.body }
                    })
                    .collect();
                assert_eq!(found, expected);
            }
            Op::Reopen => {
                store = None;
                store.replace(EmbeddedStore::open(directory.path()).expect("opened again"));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn rows_agree_with_a_model(ops in prop::collection::vec(op(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(agrees_with_the_model(ops));
    }
}
