use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc as std_mpsc;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::record::Topic;

fn clock() -> Clock {
    let now = AtomicI64::new(1_000);
    Arc::new(move || Timestamp(now.fetch_add(1, Ordering::Relaxed)))
}

fn open(directory: &Path) -> Result<EmbeddedLog, LogError> {
    EmbeddedLog::open(directory, clock())
}

/// A log whose segments hold a few records.
fn open_small(directory: &Path) -> Result<EmbeddedLog, LogError> {
    let options = EmbeddedOptions { segment_bytes_max: 300, ..EmbeddedOptions::default() };
    EmbeddedLog::open_with(directory, clock(), options)
}

fn record(value: &str) -> Outgoing {
    Outgoing::new(Topic::Events, Some(b"key".to_vec()), Some(value.as_bytes().to_vec()))
}

fn values(log: &EmbeddedLog) -> Vec<String> {
    let records = log.read(log.first_offset(), usize::MAX, usize::MAX).expect("sound");
    records
        .iter()
        .map(|record| String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into())
        .collect()
}

/// The last segment.
fn last_segment(directory: &Path) -> PathBuf {
    let files = fs::read_dir(directory).expect("there").map(|entry| entry.expect("listed").path());
    files.filter(|path| segment::first_of(path).is_some()).max().expect("a segment")
}

#[tokio::test]
async fn records_are_read_back_as_they_were_and_survive_a_restart() {
    let directory = TempDir::new().expect("made");
    let path = directory.path().join("deep/log");
    let log = open(&path).expect("opens");
    let reference = Outgoing::new(Topic::References, Some(b"list:a:l".to_vec()), None);
    log.append(vec![record("a"), reference]).await.expect("appended");
    log.append(vec![Outgoing::new(Topic::Events, None, Some(Vec::new()))]).await.expect("appended");
    drop(log);

    let log = open(&path).expect("opens again");
    let read = log.read(0, 10, usize::MAX).expect("sound");
    let shown: Vec<_> =
        read.iter().map(|r| (r.topic, r.partition, r.offset, r.key.as_deref(), r.value.as_deref())).collect();
    let expected = [
        (Topic::Events, 0, 0, Some(b"key".as_slice()), Some(b"a".as_slice())),
        (Topic::References, 0, 1, Some(b"list:a:l"), None),
        (Topic::Events, 0, 2, None, Some(b"")),
    ];
    assert_eq!(shown, expected);
    assert_eq!(read[0].appended_at, read[1].appended_at);
    assert!(read[1].appended_at < read[2].appended_at);
}

#[tokio::test]
async fn a_torn_tail_is_cut_off_at_every_byte_of_the_last_record() {
    let original = TempDir::new().expect("made");
    let log = open(original.path()).expect("opens");
    log.append(vec![record("first"), record("second")]).await.expect("appended");
    drop(log);
    let before = fs::metadata(last_segment(original.path())).expect("there").len();
    let log = open(original.path()).expect("opens");
    log.append(vec![record("the last")]).await.expect("appended");
    drop(log);
    let bytes = fs::read(last_segment(original.path())).expect("there");

    for cut in usize::try_from(before).expect("small")..bytes.len() {
        // What is left of the record: nothing more, zeroes as of blocks that were never written, or other
        // bytes.
        let tails = [Vec::new(), vec![0; bytes.len() - cut], vec![0xa5; 3 * bytes.len()]];
        for tail in tails {
            let torn = TempDir::new().expect("made");
            fs::write(torn.path().join(segment::file_name(0)), [&bytes[..cut], &tail].concat())
                .expect("written");
            let log = open(torn.path()).expect("a torn tail is no damage");
            assert_eq!(values(&log), ["first", "second"], "cut at {cut}");
            log.append(vec![record("third")]).await.expect("appended");
            drop(log);
            assert_eq!(
                values(&open(torn.path()).expect("opens")),
                ["first", "second", "third"],
                "cut at {cut}"
            );
        }
    }
}

#[tokio::test]
async fn a_hole_in_the_last_write_cuts_it_off_there_and_one_below_is_damage() {
    let directory = TempDir::new().expect("made");
    let log = open(directory.path()).expect("opens");
    log.append(vec![record("acknowledged")]).await.expect("appended");
    let durable = fs::metadata(last_segment(directory.path())).expect("there").len();
    log.append(vec![record("one"), record("two"), record("three")]).await.expect("appended");
    drop(log);
    let bytes = fs::read(last_segment(directory.path())).expect("there");
    let each = (bytes.len() - usize::try_from(durable).expect("small")) / 3;

    // The disk wrote the blocks of the last write in an order of its own, and lost power.
    let hole = bytes.len() - each - 3;
    let torn = TempDir::new().expect("made");
    let mut holed = bytes.clone();
    holed[hole..hole + 3].fill(0);
    fs::write(torn.path().join(segment::file_name(0)), &holed).expect("written");
    let log = open(torn.path()).expect("not acknowledged, so no damage");
    assert_eq!(values(&log), ["acknowledged", "one"]);
    drop(log);

    for byte in 0..usize::try_from(durable).expect("small") {
        let damaged = TempDir::new().expect("made");
        let mut flipped = bytes.clone();
        flipped[byte] ^= 0x10;
        let path = damaged.path().join(segment::file_name(0));
        fs::write(&path, &flipped).expect("written");
        let error = open(damaged.path()).err().expect("an acknowledged record is gone");
        assert!(matches!(error, LogError::Damaged { .. }), "{error:?}");
        assert_eq!(fs::read(&path).expect("there"), flipped, "nothing is repaired");
    }
}

#[tokio::test]
async fn damage_in_a_segment_that_is_full_is_an_error() {
    let directory = TempDir::new().expect("made");
    let log = open_small(directory.path()).expect("opens");
    for value in 0..30 {
        log.append(vec![record(&value.to_string())]).await.expect("appended");
    }
    assert_eq!(values(&log).len(), 30);
    let first = directory.path().join(segment::file_name(0));
    let bytes = fs::read(&first).expect("there");

    // While it is open the reader meets it, and says where.
    let file = File::options().write(true).open(&first).expect("opens");
    file.write_all_at(b"x", bytes.len() as u64 - 1).expect("written");
    let error = log.read(0, 100, usize::MAX).expect_err("damaged");
    assert!(matches!(error, LogError::Damaged { .. }), "{error:?}");
    drop(log);
    assert!(matches!(open(directory.path()), Err(LogError::Damaged { .. })));

    fs::write(&first, &bytes[..bytes.len() - 1]).expect("written");
    assert!(
        matches!(open(directory.path()), Err(LogError::Damaged { .. })),
        "a tail is torn only at the end"
    );
    fs::remove_file(&first).expect("removed");
    assert_eq!(open(directory.path()).map(|log| log.first_offset() > 0).ok(), Some(true), "trimmed");
    let second = last_segment(directory.path());
    fs::write(&first, b"").expect("written");
    let error = open(directory.path()).err().expect("records are missing before the second segment");
    assert!(matches!(error, LogError::Damaged { .. }), "{error:?}");
    assert!(second.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn appends_that_come_together_are_all_there_once_and_in_their_callers_order() {
    let directory = TempDir::new().expect("made");
    // The clock goes back now and then.
    let ticks = AtomicI64::new(0);
    let clock: Clock = Arc::new(move || Timestamp(ticks.fetch_add(1, Ordering::Relaxed) % 7));
    let options =
        EmbeddedOptions { segment_bytes_max: 20_000, group_bytes_max: 2_000, queue_bytes_max: 4_000 };
    let log = Arc::new(EmbeddedLog::open_with(directory.path(), clock, options).expect("opens"));
    let callers = (0..16).map(|caller| {
        let log = Arc::clone(&log);
        tokio::spawn(async move {
            for call in 0..50 {
                let records = (0..1 + call % 4).map(|n| record(&format!("{caller}/{call:02}/{n}"))).collect();
                log.append(records).await.expect("appended");
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.expect("no panic");
    }

    let read = log.read(0, usize::MAX, usize::MAX).expect("sound");
    let offsets: Vec<i64> = read.iter().map(|record| record.offset).collect();
    assert_eq!(offsets, (0..i64::try_from(read.len()).expect("few")).collect::<Vec<_>>());
    assert!(read.is_sorted_by_key(|record| record.appended_at), "times do not go back");
    let found = values(&log);
    for caller in 0..16 {
        let own: Vec<&String> =
            found.iter().filter(|value| value.starts_with(&format!("{caller}/"))).collect();
        assert!(own.is_sorted(), "caller {caller}");
        assert_eq!(own.len(), (0..50).map(|call| 1 + call % 4).sum::<usize>());
    }
    drop(log);
    assert_eq!(values(&open(directory.path()).expect("opens")), found);
}

#[tokio::test]
async fn trimming_deletes_what_is_below_and_numbers_go_on() {
    let directory = TempDir::new().expect("made");
    let log = open_small(directory.path()).expect("opens");
    for value in 0..50 {
        log.append(vec![record(&format!("{value:02}"))]).await.expect("appended");
    }
    assert_eq!(log.trim(0).expect("trimmed"), 0);
    assert!(log.trim(20).expect("trimmed") > 0);
    let first = log.first_offset();
    assert!((15..=20).contains(&first), "{first}");
    assert_eq!(values(&log).first(), Some(&format!("{first:02}")));
    // A reader that is behind goes on at the first that is left.
    assert_eq!(log.read(3, 1, usize::MAX).expect("sound")[0].offset, i64::try_from(first).expect("small"));

    assert!(log.trim(1000).expect("trimmed") > 0);
    assert!(log.first_offset() < 50, "the last segment stays");
    drop(log);
    let log = open_small(directory.path()).expect("opens");
    assert_eq!(log.end_offset(), 50);
    log.append(vec![record("50")]).await.expect("appended");
    assert_eq!(values(&log).last(), Some(&"50".to_owned()));
}

#[tokio::test]
async fn readers_wait_for_what_is_to_come_and_go_on_where_they_stopped() {
    let directory = TempDir::new().expect("made");
    let log = Arc::new(open(directory.path()).expect("opens"));
    let waiting = tokio::spawn({
        let log = Arc::clone(&log);
        async move {
            log.wait_beyond(999).await;
            log.end_offset()
        }
    });
    for _ in 0..4 {
        assert!(!waiting.is_finished());
        log.append(vec![record("value"); 250]).await.expect("appended");
    }
    assert_eq!(waiting.await.expect("no panic"), 1000);

    let mut next = 0;
    while next < 1000 {
        let read = log.read(next, 7, usize::MAX).expect("sound");
        assert_eq!(read[0].offset, i64::try_from(next).expect("small"));
        next += read.len() as u64;
        let place = log.shared.segments().place(next);
        assert!(next == 1000 || place.number == next, "nothing is read twice");
    }
    assert!(log.read(1000, 7, usize::MAX).expect("sound").is_empty());
    let error = log.read(1001, 7, usize::MAX).expect_err("another log");
    assert!(!error.may_pass(), "{error:?}");
    let bytes = log.read(0, 1000, 8 * 10).expect("sound").len();
    assert_eq!(bytes, 10, "eight bytes each");
}

#[tokio::test]
async fn a_log_is_opened_by_one_at_a_time() {
    let directory = TempDir::new().expect("made");
    let log = open(directory.path()).expect("opens");
    let error = open(directory.path()).err().expect("in use");
    assert!(matches!(error, LogError::Refused { operation: "open", .. }), "{error:?}");
    drop(log);
    open(directory.path()).expect("opens");
}

#[tokio::test]
async fn a_record_that_is_too_long_is_refused() {
    let directory = TempDir::new().expect("made");
    let log = open(directory.path()).expect("opens");
    let long = Outgoing::new(Topic::Events, None, Some(vec![0; 65 << 20]));
    assert!(!log.append(vec![long]).await.expect_err("too long").may_pass());
    log.append(vec![record("short")]).await.expect("appended");
}

/// A disk that fails on demand, and waits for leave before each write.
#[derive(Default)]
struct TestDisk {
    write_fails: Arc<AtomicBool>,
    sync_fails: Arc<AtomicBool>,
    leave: Option<std_mpsc::Receiver<()>>,
}

impl Disk for TestDisk {
    fn write(&mut self, file: &File, bytes: &[u8], position: u64) -> io::Result<()> {
        if let Some(leave) = &self.leave {
            leave.recv().expect("the test goes on");
        }
        if self.write_fails.load(Ordering::Relaxed) {
            file.write_all_at(&bytes[..bytes.len() / 2], position)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        file.write_all_at(bytes, position)
    }

    fn sync(&mut self, file: &File) -> io::Result<()> {
        if self.sync_fails.load(Ordering::Relaxed) {
            return Err(io::Error::other("lost"));
        }
        file.sync_data()
    }
}

#[tokio::test]
async fn a_full_disk_fails_the_call_and_the_next_may_succeed() {
    let directory = TempDir::new().expect("made");
    let disk = TestDisk::default();
    let write_fails = Arc::clone(&disk.write_fails);
    let log = EmbeddedLog::open_on(directory.path(), clock(), EmbeddedOptions::default(), Box::new(disk));
    let log = log.expect("opens");
    log.append(vec![record("before")]).await.expect("appended");
    write_fails.store(true, Ordering::Relaxed);
    assert!(log.append(vec![record("a long one that is half written")]).await.expect_err("full").may_pass());
    assert_eq!(values(&log), ["before"]);
    write_fails.store(false, Ordering::Relaxed);
    log.append(vec![record("after")]).await.expect("appended");
    log.check().await.expect("well");
    drop(log);
    assert_eq!(values(&open(directory.path()).expect("opens")), ["before", "after"]);
}

#[tokio::test]
async fn a_sync_that_failed_closes_the_log_until_it_is_opened_again() {
    let directory = TempDir::new().expect("made");
    let disk = TestDisk::default();
    let sync_fails = Arc::clone(&disk.sync_fails);
    let log = EmbeddedLog::open_on(directory.path(), clock(), EmbeddedOptions::default(), Box::new(disk));
    let log = log.expect("opens");
    log.append(vec![record("before")]).await.expect("appended");
    sync_fails.store(true, Ordering::Relaxed);
    log.append(vec![record("lost, perhaps")]).await.expect_err("not synced");
    sync_fails.store(false, Ordering::Relaxed);
    log.append(vec![record("after")]).await.expect_err("what is on the disk is not known");
    log.check().await.expect_err("told");
    assert_eq!(values(&log), ["before"], "nothing is read that may be lost");
    drop(log);
    let log = open(directory.path()).expect("opens");
    assert_eq!(values(&log), ["before", "lost, perhaps"]);
    log.check().await.expect("well");
}

#[tokio::test]
async fn a_slow_disk_makes_callers_wait() {
    let directory = TempDir::new().expect("made");
    let (leave, receiver) = std_mpsc::channel();
    let disk = TestDisk { leave: Some(receiver), ..TestDisk::default() };
    let options = EmbeddedOptions { queue_bytes_max: 200, ..EmbeddedOptions::default() };
    let log = EmbeddedLog::open_on(directory.path(), clock(), options, Box::new(disk)).expect("opens");
    let log = Arc::new(log);
    let calls: Vec<_> = (0..20)
        .map(|call| {
            let log = Arc::clone(&log);
            // One of them is longer than the queue.
            let value = if call == 10 { "x".repeat(1000) } else { call.to_string() };
            tokio::spawn(async move { log.append(vec![record(&value)]).await })
        })
        .collect();
    while log.room.available_permits() >= format::encoded_len(&record("")) {
        tokio::task::yield_now().await;
    }
    assert_eq!(log.end_offset(), 0);
    assert!(calls.iter().all(|call| !call.is_finished()));
    for _ in 0..20 {
        // Writes may be fewer than calls.
        leave.send(()).expect("the writer waits");
    }
    for call in calls {
        call.await.expect("no panic").expect("appended");
    }
    assert_eq!(log.end_offset(), 20);
}

/// What a test does with a log.
#[derive(Clone, Debug)]
enum Op {
    Append(Vec<u8>),
    Reopen,
    Trim(u64),
    Read(u64, usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => proptest::collection::vec(0..120_u8, 1..6).prop_map(Op::Append),
        1 => Just(Op::Reopen),
        1 => (0..80_u64).prop_map(Op::Trim),
        3 => (0..80_u64, 1..9_usize).prop_map(|(from, count)| Op::Read(from, count)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_log_does_what_a_list_does(ops in proptest::collection::vec(op(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("built");
        let directory = TempDir::new().expect("made");
        let mut log = Some(open_small(directory.path()).expect("opens"));
        let mut model: Vec<Vec<u8>> = Vec::new();
        let mut trimmed = 0;
        for op in ops {
            let current = log.as_ref().expect("open");
            match op {
                Op::Append(lengths) => {
                    let added = lengths.iter().map(|len| vec![*len; usize::from(*len)]).collect::<Vec<_>>();
                    let records = added.iter().map(|value| Outgoing::new(Topic::Events, None, Some(value.clone())));
                    runtime.block_on(current.append(records.collect())).expect("appended");
                    model.extend(added);
                }
                Op::Reopen => {
                    drop(log.take());
                    log = Some(open_small(directory.path()).expect("opens"));
                }
                Op::Trim(below) => {
                    current.trim(below).expect("trimmed");
                    trimmed = below.max(trimmed);
                    prop_assert!(current.first_offset() <= trimmed.min(model.len() as u64));
                }
                Op::Read(from, count) if from > model.len() as u64 => {
                    prop_assert!(current.read(from, count, usize::MAX).is_err());
                }
                Op::Read(from, count) => {
                    let read = current.read(from, count, usize::MAX).expect("sound");
                    let first = from.max(current.first_offset());
                    let expected: Vec<_> = (0_i64..)
                        .zip(&model)
                        .skip(usize::try_from(first).expect("small"))
                        .take(count)
                        .map(|(offset, value)| (offset, value.as_slice()))
                        .collect();
                    let read = read.iter().map(|record| (record.offset, record.value.as_deref().unwrap_or_default()));
                    prop_assert_eq!(read.collect::<Vec<_>>(), expected);
                }
            }
            let current = log.as_ref().expect("open");
            prop_assert_eq!(current.end_offset(), model.len() as u64);
        }
    }
}
