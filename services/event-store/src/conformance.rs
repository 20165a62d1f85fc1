//! What every store must do: one check for each promise of [`EventStore`], to be run against any of them.
//!
//! Names are made of a `scope`, so that the checks can run on a server that is shared; what they leave expires within an
//! hour, but for references, known timelines, epochs and keys.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future;
use timeline::key::{KeyRecord, Permission};
use timeline::reference::{Kind, Reference, ReferenceKey};
use timeline::row::RowKey;
use timeline::send::SendFacts;
use timeline::tally::{ROOT_CELL, Root};
use timeline::{AccountId, EventType, Id, Position, Span, TimelineId, Timestamp, TypeSet};
use uuid::Uuid;

use crate::{
    Columns, EventStore, Head, ReferenceWrite, RowGroup, RowWrite, SendWrite, StoredReference, StoredRow,
    TallyWrite, Waiting, WaitingFrom,
};

/// How long a check waits for what comes with time.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// How long what the checks write is kept, in milliseconds.
const KEPT_MS: i64 = 3_600_000;

/// Runs every check. `scope` is 1 to 24 characters `[A-Za-z0-9_.-]`, and no other run's on the same store.
///
/// # Panics
///
/// At the first promise that is not kept, and where the store fails.
pub async fn run(store: Arc<dyn EventStore>, scope: &str) {
    macro_rules! checks {
        ($($check:ident,)*) => {
            $({
                tracing::info!(check = stringify!($check), "checking");
                Box::pin($check(&Scene::new(&store, scope, stringify!($check)))).await;
            })*
        };
    }
    checks! {
        the_store_is_ready,
        a_row_comes_back_as_it_was_written,
        nothing_is_read_where_nothing_was_written,
        rows_are_newest_first_then_by_type,
        a_span_holds_its_beginning_and_not_its_end,
        a_span_may_begin_and_end_within_a_millisecond,
        a_span_reaches_from_the_first_instant_to_the_last,
        only_the_types_asked_for_are_read,
        keys_come_without_bodies,
        the_newest_rows_come_first_under_a_limit,
        the_later_write_of_a_row_stays,
        one_of_two_equal_writes_of_a_row_stays,
        the_latest_of_many_writers_stays,
        a_row_that_has_expired_is_not_written,
        a_row_disappears_when_its_life_is_over,
        parts_are_apart,
        timelines_are_apart,
        a_deleted_row_is_gone,
        a_delete_spares_later_writes,
        a_delete_keeps_earlier_writes_out,
        many_groups_are_written_at_once,
        ten_thousand_rows_are_read_at_once,
        large_bodies_are_kept,
        tallies_come_back_in_the_order_asked_for,
        the_later_tally_stays,
        tallies_of_timelines_are_apart,
        tallies_are_seen_all_or_none,
        many_tallies_are_one_write,
        what_a_send_knew_comes_back,
        the_earlier_send_stays,
        a_send_that_has_expired_is_not_written,
        events_wait_until_they_are_removed,
        an_event_may_wait_again,
        an_event_that_has_expired_does_not_wait,
        waiting_events_are_told_apart,
        events_that_wait_are_read_some_at_a_time,
        a_reference_keeps_what_a_change_leaves_out,
        the_later_change_of_each_field_stays,
        a_deleted_reference_keeps_its_name,
        references_come_back_in_the_order_asked_for,
        a_known_timeline_stays_known,
        a_head_tells_whether_its_timeline_is_known_and_its_root,
        of_a_timeline_without_a_tree_an_earlier_owners_tree_does_not_show,
        a_promise_stays_where_rows_are_written_unseen,
        first_parts_come_in_the_order_asked_for,
        epochs_rise_under_many_takers,
        epochs_of_scopes_are_apart,
        a_key_comes_back_as_it_was_written,
        a_key_is_written_whole,
    }
}

/// Where one check plays: names of its own.
struct Scene {
    store: Arc<dyn EventStore>,
    account: AccountId,
    now: Timestamp,
}

impl Scene {
    fn new(store: &Arc<dyn EventStore>, scope: &str, check: &str) -> Scene {
        // Names are cut to length; a hash of the check keeps them apart.
        let hash = check.bytes().fold(5381_u32, |hash, byte| hash.wrapping_mul(33) ^ u32::from(byte));
        let account: String = format!("{scope}.{hash:08x}.{check}").chars().take(56).collect();
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
        let now = Timestamp(i64::try_from(since_epoch.as_millis()).expect("the clock is within reason"));
        Scene {
            store: Arc::clone(store),
            account: AccountId::parse(&account).expect("a scope is of account characters"),
            now,
        }
    }

    fn campaign(&self, name: &str) -> TimelineId {
        TimelineId::campaign(&self.account, &id(name))
    }

    /// A row `ms_ago` milliseconds before now, written then.
    fn row(&self, event_type: EventType, ms_ago: i64, name: &str) -> RowWrite {
        let key = key(self.now.minus_ms(ms_ago), name, event_type);
        let stamp = key.position.at.0 * 1000;
        RowWrite {
            key,
            stamp,
            expires_at: self.now.plus_ms(KEPT_MS),
            body: format!("body of {name}").into_bytes(),
            is_new: false,
        }
    }

    async fn write(&self, timeline: &TimelineId, part: u32, rows: &[RowWrite]) {
        let group = RowGroup { timeline, part, rows: rows.to_vec() };
        self.store.write_rows(self.now, &[group]).await.expect("rows are written");
    }

    async fn read(&self, timeline: &TimelineId, part: u32, types: TypeSet, span: &Span) -> Vec<StoredRow> {
        self.store
            .read_rows(timeline, part, types, span, Columns::All, usize::MAX)
            .await
            .expect("rows are read")
    }

    async fn read_all(&self, timeline: &TimelineId) -> Vec<StoredRow> {
        self.read(timeline, 0, TypeSet::ALL, &Span::all()).await
    }

    async fn write_tally(&self, timeline: &TimelineId, stamp: i64, cells: &[(u32, &[u8])]) {
        let cells = cells.iter().map(|(cell, bytes)| (*cell, bytes.to_vec())).collect();
        let tallies = TallyWrite { timeline: timeline.clone(), stamp, ttl_s: 3600, cells };
        self.store.write_tallies(&[tallies]).await.expect("tallies are written");
    }

    async fn read_tallies(&self, timeline: &TimelineId, cells: &[u32]) -> Vec<Option<Vec<u8>>> {
        let tallies = self.store.read_tallies(timeline, cells).await.expect("tallies are read");
        tallies.into_iter().map(|tally| tally.map(|tally| tally.bytes)).collect()
    }

    async fn write_send(&self, message: &str, facts: &SendFacts, stamp: i64, expires_at: Timestamp) {
        let send = SendWrite {
            account: self.account.clone(),
            message: id(message),
            facts: facts.clone(),
            stamp,
            expires_at,
        };
        self.store.write_sends(self.now, &[send]).await.expect("sends are written");
    }

    async fn read_send(&self, message: &str) -> Option<SendFacts> {
        let found =
            self.store.read_sends(&[(self.account.clone(), id(message))]).await.expect("sends are read");
        assert_eq!(found.len(), 1);
        found.into_iter().next().flatten()
    }

    fn waiting(&self, message: &str, ms_ago: i64, name: &str) -> Waiting {
        Waiting {
            account: self.account.clone(),
            message: id(message),
            at: self.now.minus_ms(ms_ago),
            id: id(name),
            event: format!("{{\"id\":\"{name}\"}}").into_bytes(),
            appended_at: self.now.minus_ms(ms_ago / 2),
            expires_at: self.now.plus_ms(KEPT_MS),
        }
    }

    async fn put_waiting(&self, waiting: &[Waiting]) {
        self.store.put_waiting(self.now, waiting).await.expect("events are put to wait");
    }

    async fn read_waiting(&self, messages: &[&str]) -> Vec<Waiting> {
        let messages = messages.iter().map(|message| WaitingFrom::all((self.account.clone(), id(message))));
        let messages: Vec<WaitingFrom> = messages.collect();
        let (mut found, more) =
            self.store.read_waiting(&messages, usize::MAX).await.expect("waiting events are read");
        assert_eq!(more, []);
        found.sort_by(|one, other| {
            (&one.message, one.at, &one.id).cmp(&(&other.message, other.at, &other.id))
        });
        found
    }

    fn reference(&self, kind: Kind, name: &str) -> ReferenceKey {
        ReferenceKey { account: self.account.clone(), kind, id: id(name) }
    }

    async fn write_reference(
        &self,
        key: &ReferenceKey,
        stamp: i64,
        name: Option<&str>,
        email: Option<&str>,
        deleted: bool,
    ) {
        let reference =
            Reference { key: key.clone(), name: name.map(Into::into), email: email.map(Into::into), deleted };
        let write = ReferenceWrite { reference, stamp };
        self.store.write_references(&[write]).await.expect("references are written");
    }

    async fn read_reference(&self, key: &ReferenceKey) -> Option<StoredReference> {
        let found = self.store.read_references(std::slice::from_ref(key)).await.expect("references are read");
        assert_eq!(found.len(), 1);
        found.into_iter().next().flatten()
    }
}

fn id(text: &str) -> Id {
    Id::parse(text).expect("a valid id")
}

fn key(at: Timestamp, name: &str, event_type: EventType) -> RowKey {
    RowKey { position: Position { at, id: name.into() }, event_type }
}

fn position(at: Timestamp, name: &str) -> Position {
    Position { at, id: name.into() }
}

fn stored(rows: &[RowWrite]) -> Vec<StoredRow> {
    rows.iter().map(|row| StoredRow { key: row.key.clone(), body: row.body.clone() }).collect()
}

fn names(rows: &[StoredRow]) -> Vec<&str> {
    rows.iter().map(|row| &*row.key.position.id).collect()
}

fn reference(name: Option<&str>, email: Option<&str>, deleted: bool) -> StoredReference {
    StoredReference { name: name.map(Into::into), email: email.map(Into::into), deleted }
}

async fn the_store_is_ready(scene: &Scene) {
    scene.store.check().await.expect("the store answers and has its tables");
}

async fn a_row_comes_back_as_it_was_written(scene: &Scene) {
    let longest = "x".repeat(64);
    for (timeline, name) in [
        (scene.campaign("cmp_1"), "evt:1.a-b_c"),
        (scene.campaign(&longest), &longest),
        (TimelineId::contact(&scene.account, Uuid::from_u128(7)), "e"),
    ] {
        let row = RowWrite { body: (0..=255).collect(), ..scene.row(EventType::Clicked, 5, name) };
        scene.write(&timeline, 3, std::slice::from_ref(&row)).await;
        assert_eq!(scene.read(&timeline, 3, TypeSet::ALL, &Span::all()).await, stored(&[row]));
    }
}

async fn nothing_is_read_where_nothing_was_written(scene: &Scene) {
    let timeline = scene.campaign("none");
    assert_eq!(scene.read_all(&timeline).await, []);
    assert_eq!(scene.read_tallies(&timeline, &[0, 1]).await, [None, None]);
    assert_eq!(scene.read_tallies(&timeline, &[]).await, [] as [Option<Vec<u8>>; 0]);
    assert_eq!(scene.read_send("none").await, None);
    assert_eq!(scene.read_waiting(&["none"]).await, []);
    assert_eq!(scene.read_reference(&scene.reference(Kind::List, "none")).await, None);
    assert!(!scene.store.is_known(&timeline).await.expect("answered"));
    assert_eq!(scene.store.read_key(scene.account.as_str()).await.expect("answered"), None);
    // Nothing to do is done.
    scene.store.write_rows(scene.now, &[]).await.expect("done");
    scene.write(&timeline, 0, &[]).await;
    scene.store.delete_rows(&timeline, 0, &[], 1).await.expect("done");
    scene.write_tally(&timeline, 1, &[]).await;
    scene.store.write_sends(scene.now, &[]).await.expect("done");
    scene.put_waiting(&[]).await;
    scene.store.remove_waiting(&[]).await.expect("done");
    scene.store.write_references(&[]).await.expect("done");
    scene.store.mark_known(&[]).await.expect("done");
    assert_eq!(scene.read_all(&timeline).await, []);
}

async fn rows_are_newest_first_then_by_type(scene: &Scene) {
    let timeline = scene.campaign("c");
    // As they should come: by time, then by id as text, both descending, then by type.
    let rows = [
        scene.row(EventType::Sent, 1, "a"),
        scene.row(EventType::Sent, 2, "b"),
        scene.row(EventType::Clicked, 2, "b"),
        scene.row(EventType::Unsubscribed, 2, "b"),
        scene.row(EventType::Opened, 2, "a9"),
        scene.row(EventType::Sent, 2, "a10"),
        scene.row(EventType::Delivered, 2, "a"),
        scene.row(EventType::Delivered, 2, "Z"),
        scene.row(EventType::Imported, 2, "1"),
        scene.row(EventType::Sent, 2, "-"),
        scene.row(EventType::Sent, 90_000, "z"),
    ];
    let mut shuffled = rows.to_vec();
    shuffled.sort_by_key(|row| row.key.position.id.len() * 7 % 5);
    scene.write(&timeline, 0, &shuffled).await;
    assert_eq!(scene.read_all(&timeline).await, stored(&rows));
}

async fn a_span_holds_its_beginning_and_not_its_end(scene: &Scene) {
    let timeline = scene.campaign("c");
    let rows: Vec<_> = (0..5).map(|ms| scene.row(EventType::Sent, ms, &format!("e{ms}"))).collect();
    scene.write(&timeline, 0, &rows).await;
    let ago = |ms| scene.now.minus_ms(ms);
    let whole = Span::of_times(ago(3), ago(1));
    assert_eq!(names(&scene.read(&timeline, 0, TypeSet::ALL, &whole).await), ["e1", "e2", "e3"]);
    let exact = Span { from: position(ago(3), "e3"), until: position(ago(1), "e1") };
    assert_eq!(names(&scene.read(&timeline, 0, TypeSet::ALL, &exact).await), ["e2", "e3"]);
    let around = Span { from: position(ago(3), "e3."), until: position(ago(1), "e1.") };
    assert_eq!(names(&scene.read(&timeline, 0, TypeSet::ALL, &around).await), ["e1", "e2"]);
    let adjacent = Span { from: position(ago(3), "e3"), until: position(ago(2), "e2") };
    assert_eq!(names(&scene.read(&timeline, 0, TypeSet::ALL, &adjacent).await), ["e3"]);
    for empty in [
        Span { from: position(ago(3), "e3"), until: position(ago(3), "e3") },
        Span { from: position(ago(1), ""), until: position(ago(3), "") },
        Span { from: Position::max(), until: Position::min() },
    ] {
        assert_eq!(scene.read(&timeline, 0, TypeSet::ALL, &empty).await, []);
    }
}

async fn a_span_may_begin_and_end_within_a_millisecond(scene: &Scene) {
    let timeline = scene.campaign("c");
    let mut rows: Vec<_> =
        ["a", "ab", "b", "c", "ca"].map(|name| scene.row(EventType::Opened, 1, name)).into();
    rows.extend(["b", "c"].map(|name| scene.row(EventType::Clicked, 1, name)));
    rows.extend([scene.row(EventType::Opened, 0, "later"), scene.row(EventType::Opened, 2, "earlier")]);
    scene.write(&timeline, 0, &rows).await;
    let at = scene.now.minus_ms(1);
    let within = |from: &str, until: &str| Span { from: position(at, from), until: position(at, until) };
    let read = async |span: Span| {
        let rows = scene.read(&timeline, 0, TypeSet::ALL, &span).await;
        let names: Vec<String> = rows.iter().map(|row| row.key.position.id.to_string()).collect();
        names.join(" ")
    };
    assert_eq!(read(within("ab", "c")).await, "b b ab");
    assert_eq!(read(within("aa", "cb")).await, "ca c c b b ab");
    assert_eq!(read(within("", "b")).await, "ab a");
    assert_eq!(read(Span { from: position(at, "c"), until: Position::max() }).await, "later ca c c");
    assert_eq!(read(Span { from: Position::min(), until: position(at, "ab") }).await, "a earlier");
    assert_eq!(
        read(Span { from: position(at.minus_ms(1), "earlier"), until: position(at, "a.") }).await,
        "a earlier"
    );
    assert_eq!(
        read(Span { from: position(at, "ca"), until: position(at.plus_ms(1), "later.") }).await,
        "later ca"
    );
}

async fn a_span_reaches_from_the_first_instant_to_the_last(scene: &Scene) {
    let timeline = scene.campaign("c");
    let at = |at, name| RowWrite {
        key: key(Timestamp(at), name, EventType::Sent),
        ..scene.row(EventType::Sent, 0, name)
    };
    let rows = [at(i64::MAX - 1, "e"), at(1, "d"), at(0, "c"), at(-1, "b"), at(i64::MIN, "a")];
    scene.write(&timeline, 0, &rows).await;
    assert_eq!(scene.read_all(&timeline).await, stored(&rows));
    let before = Span { from: Position::min(), until: Position::at_start_of(Timestamp(0)) };
    assert_eq!(names(&scene.read(&timeline, 0, TypeSet::ALL, &before).await), ["b", "a"]);
    let since = Span { from: Position::at_start_of(Timestamp(0)), until: Position::max() };
    assert_eq!(names(&scene.read(&timeline, 0, TypeSet::ALL, &since).await), ["e", "d", "c"]);
}

async fn only_the_types_asked_for_are_read(scene: &Scene) {
    let timeline = scene.campaign("c");
    let rows: Vec<_> = EventType::ALL.map(|event_type| scene.row(event_type, 1, event_type.name())).into();
    scene.write(&timeline, 0, &rows).await;
    for types in [TypeSet::of(&[EventType::Sent]), TypeSet::CAMPAIGN, TypeSet::CONTACT, TypeSet::ALL] {
        let found = scene.read(&timeline, 0, types, &Span::all()).await;
        let found: BTreeSet<EventType> = found.iter().map(|row| row.key.event_type).collect();
        assert_eq!(found, types.iter().collect());
    }
    assert_eq!(scene.read(&timeline, 0, TypeSet::default(), &Span::all()).await, []);
}

async fn keys_come_without_bodies(scene: &Scene) {
    let timeline = scene.campaign("c");
    let rows = [scene.row(EventType::Sent, 1, "b"), scene.row(EventType::Opened, 2, "a")];
    scene.write(&timeline, 0, &rows).await;
    let at = |name| position(scene.now.minus_ms(2), name);
    for (span, count) in [
        (Span::all(), 2),
        (Span { from: at("a"), until: Position::max() }, 2),
        (Span { from: Position::min(), until: at("b") }, 1),
        (Span { from: at("a"), until: at("b") }, 1),
    ] {
        let found = scene
            .store
            .read_rows(&timeline, 0, TypeSet::ALL, &span, Columns::Keys, usize::MAX)
            .await
            .expect("read");
        let keys: Vec<_> = rows[2 - count..]
            .iter()
            .map(|row| StoredRow { key: row.key.clone(), body: Vec::new() })
            .collect();
        assert_eq!(found, keys);
    }
}

async fn the_newest_rows_come_first_under_a_limit(scene: &Scene) {
    let timeline = scene.campaign("c");
    let types = [EventType::Sent, EventType::Opened, EventType::Clicked];
    let rows: Vec<RowWrite> = (0..60_i64)
        .zip(types.iter().cycle())
        .map(|(at, of)| scene.row(*of, 60 - at / 2, &format!("e{at:02}")))
        .collect();
    scene.write(&timeline, 0, &rows).await;
    let span = Span { from: rows[3].key.position.clone(), until: rows[57].key.position.clone() };
    for types in [TypeSet::ALL, TypeSet::of(&[EventType::Sent, EventType::Clicked])] {
        for span in [&Span::all(), &span] {
            let all = scene.read(&timeline, 0, types, span).await;
            for limit in [1, 2, 10, 100] {
                let found = scene
                    .store
                    .read_rows(&timeline, 0, types, span, Columns::All, limit)
                    .await
                    .expect("read");
                assert!(found.len() >= limit.min(all.len()), "{limit}");
                assert_eq!(
                    found[..],
                    all[..found.len()],
                    "the newest, as they come without a limit: {limit}"
                );
            }
        }
    }
}

async fn the_later_write_of_a_row_stays(scene: &Scene) {
    let early = scene.row(EventType::Sent, 1, "a");
    let late = RowWrite { stamp: early.stamp + 1, body: b"late".to_vec(), ..early.clone() };
    for (name, order) in [("in_order", [&early, &late]), ("turned", [&late, &early])] {
        let timeline = scene.campaign(name);
        for row in order {
            scene.write(&timeline, 0, std::slice::from_ref(row)).await;
        }
        assert_eq!(scene.read_all(&timeline).await, stored(std::slice::from_ref(&late)), "{name}");
        let timeline = scene.campaign(&format!("{name}_at_once"));
        scene.write(&timeline, 0, &order.map(RowWrite::clone)).await;
        assert_eq!(
            scene.read_all(&timeline).await,
            stored(std::slice::from_ref(&late)),
            "{name} in one call"
        );
    }
}

async fn one_of_two_equal_writes_of_a_row_stays(scene: &Scene) {
    let timeline = scene.campaign("c");
    let one = scene.row(EventType::Sent, 1, "a");
    let other = RowWrite { body: b"other".to_vec(), ..one.clone() };
    scene.write(&timeline, 0, std::slice::from_ref(&one)).await;
    scene.write(&timeline, 0, std::slice::from_ref(&other)).await;
    let found = scene.read_all(&timeline).await;
    let stays = |row: &RowWrite| found == stored(std::slice::from_ref(row));
    assert!(stays(&one) || stays(&other), "{found:?}");
    scene.write(&timeline, 0, &[one, other]).await;
    assert_eq!(scene.read_all(&timeline).await, found, "a repeat changes nothing");
}

async fn the_latest_of_many_writers_stays(scene: &Scene) {
    let timeline = scene.campaign("c");
    let first = scene.row(EventType::Sent, 1, "a");
    let writers = (0..50).map(|number| {
        let stamp = first.stamp + number * 7 % 50;
        let body = stamp.to_string().into_bytes();
        let rows = vec![RowWrite { stamp, body: body.clone(), ..first.clone() }];
        let tallies = TallyWrite { timeline: timeline.clone(), stamp, ttl_s: 3600, cells: vec![(0, body)] };
        let (store, now) = (Arc::clone(&scene.store), scene.now);
        tokio::spawn(async move {
            let group = RowGroup { timeline: &tallies.timeline, part: 0, rows };
            store.write_rows(now, &[group]).await.expect("rows are written");
            store.write_tallies(&[tallies]).await.expect("tallies are written");
        })
    });
    future::try_join_all(writers).await.expect("no writer panics");
    let latest = (first.stamp + 49).to_string().into_bytes();
    assert_eq!(scene.read_tallies(&timeline, &[0]).await, [Some(latest.clone())]);
    assert_eq!(scene.read_all(&timeline).await, stored(&[RowWrite { body: latest, ..first }]));
}

async fn a_row_that_has_expired_is_not_written(scene: &Scene) {
    let timeline = scene.campaign("c");
    let expiring = |name, left_ms| RowWrite {
        expires_at: scene.now.plus_ms(left_ms),
        ..scene.row(EventType::Sent, 1, name)
    };
    let rows = [
        expiring("now", 0),
        expiring("before", -1),
        expiring("long_ago", i64::MIN / 2),
        expiring("left", KEPT_MS),
    ];
    scene.write(&timeline, 0, &rows).await;
    assert_eq!(names(&scene.read_all(&timeline).await), ["left"]);
    // Nor does it hide what is there.
    scene.write(&timeline, 0, &[RowWrite { stamp: rows[3].stamp + 1, ..expiring("left", 0) }]).await;
    assert_eq!(names(&scene.read_all(&timeline).await), ["left"]);
    // A life without an end in sight is no error.
    scene.write(&timeline, 0, &[expiring("far", i64::MAX / 2)]).await;
    assert_eq!(names(&scene.read_all(&timeline).await), ["left", "far"]);
    let key = key(scene.now.minus_ms(1), "far", EventType::Sent);
    scene.store.delete_rows(&timeline, 0, &[key], scene.now.0 * 1000).await.expect("deleted");
}

async fn a_row_disappears_when_its_life_is_over(scene: &Scene) {
    let timeline = scene.campaign("c");
    let short = RowWrite { expires_at: scene.now.plus_ms(1500), ..scene.row(EventType::Sent, 1, "short") };
    let long = scene.row(EventType::Sent, 2, "long");
    scene.write(&timeline, 0, &[short, long]).await;
    let deadline = tokio::time::Instant::now() + WAIT_MAX;
    loop {
        let rows = scene.read_all(&timeline).await;
        if names(&rows) == ["long"] {
            return;
        }
        assert_eq!(names(&rows), ["short", "long"]);
        assert!(tokio::time::Instant::now() < deadline, "an expired row is still there after {WAIT_MAX:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn parts_are_apart(scene: &Scene) {
    let timeline = scene.campaign("c");
    for part in [0, 1, 256, u32::MAX] {
        scene.write(&timeline, part, &[scene.row(EventType::Sent, 1, &format!("in_{part}"))]).await;
    }
    for part in [0, 1, 256, u32::MAX] {
        let found = scene.read(&timeline, part, TypeSet::ALL, &Span::all()).await;
        assert_eq!(names(&found), [format!("in_{part}")]);
    }
    assert_eq!(scene.read(&timeline, 2, TypeSet::ALL, &Span::all()).await, []);
}

async fn timelines_are_apart(scene: &Scene) {
    let contact = Uuid::from_u128(0xc0ffee);
    let longer = AccountId::parse(&format!("{}.x", scene.account)).expect("valid");
    let timelines = [
        scene.campaign("a"),
        scene.campaign("a1"),
        scene.campaign("a."),
        scene.campaign("a:"),
        scene.campaign("a:b"),
        scene.campaign("A"),
        scene.campaign(&contact.to_string()),
        TimelineId::contact(&scene.account, contact),
        TimelineId::campaign(&longer, &id("a")),
        TimelineId::contact(&longer, contact),
    ];
    let groups: Vec<RowGroup<'_>> = timelines
        .iter()
        .enumerate()
        .map(|(at, timeline)| {
            let rows = vec![scene.row(EventType::Sent, 1, &format!("of_{at}"))];
            RowGroup { timeline, part: 0, rows }
        })
        .collect();
    scene.store.write_rows(scene.now, &groups).await.expect("written");
    for (at, timeline) in timelines.iter().enumerate() {
        assert_eq!(names(&scene.read_all(timeline).await), [format!("of_{at}")], "{timeline:?}");
    }
}

async fn a_deleted_row_is_gone(scene: &Scene) {
    let timeline = scene.campaign("c");
    let rows = [
        scene.row(EventType::Sent, 1, "same_stamp"),
        scene.row(EventType::Opened, 1, "same_stamp"),
        scene.row(EventType::Sent, 2, "stays"),
        scene.row(EventType::Sent, 3, "later_stamp"),
    ];
    scene.write(&timeline, 0, &rows).await;
    let delete = async |key: &RowKey, stamp| {
        scene.store.delete_rows(&timeline, 0, std::slice::from_ref(key), stamp).await.expect("deleted");
    };
    delete(&rows[0].key, rows[0].stamp).await;
    delete(&rows[3].key, rows[3].stamp + 5).await;
    assert_eq!(scene.read_all(&timeline).await, stored(&rows[1..3]));
    let keys: Vec<RowKey> = rows.iter().map(|row| row.key.clone()).collect();
    scene.store.delete_rows(&timeline, 1, &keys, scene.now.0 * 1000).await.expect("deleted in another part");
    scene
        .store
        .delete_rows(&scene.campaign("c1"), 0, &keys, scene.now.0 * 1000)
        .await
        .expect("deleted elsewhere");
    assert_eq!(scene.read_all(&timeline).await, stored(&rows[1..3]));
}

async fn a_delete_spares_later_writes(scene: &Scene) {
    let timeline = scene.campaign("c");
    let row = scene.row(EventType::Sent, 1, "a");
    scene.write(&timeline, 0, std::slice::from_ref(&row)).await;
    scene
        .store
        .delete_rows(&timeline, 0, std::slice::from_ref(&row.key), row.stamp - 1)
        .await
        .expect("deleted");
    assert_eq!(scene.read_all(&timeline).await, stored(std::slice::from_ref(&row)));
    scene.store.delete_rows(&timeline, 0, std::slice::from_ref(&row.key), row.stamp).await.expect("deleted");
    let again = RowWrite { stamp: row.stamp + 1, ..row };
    scene.write(&timeline, 0, std::slice::from_ref(&again)).await;
    assert_eq!(scene.read_all(&timeline).await, stored(&[again]));
}

async fn a_delete_keeps_earlier_writes_out(scene: &Scene) {
    let timeline = scene.campaign("c");
    let row = scene.row(EventType::Sent, 1, "a");
    scene.store.delete_rows(&timeline, 0, std::slice::from_ref(&row.key), row.stamp).await.expect("deleted");
    for stamp in [row.stamp - 1, row.stamp] {
        scene.write(&timeline, 0, &[RowWrite { stamp, ..row.clone() }]).await;
        assert_eq!(scene.read_all(&timeline).await, []);
    }
    // An earlier delete does not let them in again.
    scene
        .store
        .delete_rows(&timeline, 0, std::slice::from_ref(&row.key), row.stamp - 10)
        .await
        .expect("deleted");
    scene.write(&timeline, 0, &[RowWrite { stamp: row.stamp - 5, ..row.clone() }]).await;
    assert_eq!(scene.read_all(&timeline).await, []);
}

async fn many_groups_are_written_at_once(scene: &Scene) {
    let contacts: Vec<TimelineId> =
        (0..500).map(|number| TimelineId::contact(&scene.account, Uuid::from_u128(number))).collect();
    let groups: Vec<RowGroup<'_>> = contacts
        .iter()
        .enumerate()
        .map(|(at, timeline)| {
            let count = if at % 50 == 0 { 150 } else { 1 + i64::from(at % 3 == 0) };
            let rows = (0..count).map(|row| scene.row(EventType::Opened, row, &format!("e{at}_{row}")));
            RowGroup { timeline, part: 0, rows: rows.collect() }
        })
        .collect();
    scene.store.write_rows(scene.now, &groups).await.expect("written");
    for group in groups.iter().step_by(7).chain(groups.iter().step_by(50)) {
        assert_eq!(scene.read_all(group.timeline).await, stored(&group.rows), "{:?}", group.timeline);
    }
}

async fn ten_thousand_rows_are_read_at_once(scene: &Scene) {
    let timeline = scene.campaign("c");
    let types = [EventType::Sent, EventType::Delivered, EventType::Opened];
    let mut rows: Vec<RowWrite> = (0..10_000_i64)
        .zip(types.iter().cycle())
        .map(|(row, event_type)| scene.row(*event_type, row / 100, &format!("e{row:05}")))
        .collect();
    scene.write(&timeline, 0, &rows).await;
    rows.sort_by(|one, other| other.key.position.cmp(&one.key.position));
    assert!(scene.read_all(&timeline).await == stored(&rows), "ten thousand rows in order");
    let sent: Vec<RowWrite> = rows.into_iter().filter(|row| row.key.event_type == EventType::Sent).collect();
    let found = scene.read(&timeline, 0, TypeSet::of(&[EventType::Sent]), &Span::all()).await;
    assert!(found == stored(&sent), "a third of them in order");
}

async fn large_bodies_are_kept(scene: &Scene) {
    let timeline = scene.campaign("c");
    let large = |ms, name| RowWrite {
        body: (0..64 * 1024).map(|at: u32| (at * 31 % 251) as u8).collect(),
        ..scene.row(EventType::Purchased, ms, name)
    };
    let rows = [large(1, "a"), scene.row(EventType::Purchased, 2, "b"), large(3, "c"), large(4, "d")];
    scene.write(&timeline, 0, &rows).await;
    assert!(scene.read_all(&timeline).await == stored(&rows), "64 KiB come back");
    let timelines: Vec<TimelineId> = (0..20).map(|number| scene.campaign(&format!("c{number}"))).collect();
    let groups: Vec<RowGroup<'_>> =
        timelines.iter().map(|timeline| RowGroup { timeline, part: 0, rows: vec![large(1, "a")] }).collect();
    scene.store.write_rows(scene.now, &groups).await.expect("many large rows are written");
    assert!(
        scene.read_all(groups[19].timeline).await == stored(&groups[19].rows),
        "the last of many comes back"
    );
}

async fn tallies_come_back_in_the_order_asked_for(scene: &Scene) {
    let timeline = scene.campaign("c");
    scene.write_tally(&timeline, 1, &[(0, b"root"), (7, b"seven"), (u32::MAX, b"last"), (300, b"")]).await;
    let found = scene.read_tallies(&timeline, &[u32::MAX, 1, 0, 7, 300, 7]).await;
    let expected: [Option<&[u8]>; 6] =
        [Some(b"last"), None, Some(b"root"), Some(b"seven"), Some(b""), Some(b"seven")];
    assert_eq!(found.iter().map(Option::as_deref).collect::<Vec<_>>(), expected);
}

async fn the_later_tally_stays(scene: &Scene) {
    let timeline = scene.campaign("c");
    scene.write_tally(&timeline, 10, &[(0, b"ten"), (1, b"ten")]).await;
    scene.write_tally(&timeline, 9, &[(0, b"nine"), (2, b"nine")]).await;
    scene.write_tally(&timeline, 11, &[(1, b"eleven")]).await;
    let found = scene.read_tallies(&timeline, &[0, 1, 2]).await;
    let expected: [Option<&[u8]>; 3] = [Some(b"ten"), Some(b"eleven"), Some(b"nine")];
    assert_eq!(
        found.iter().map(Option::as_deref).collect::<Vec<_>>(),
        expected,
        "each cell by its own stamp"
    );
    let stored = scene.store.read_tallies(&timeline, &[0, 1, 2]).await.expect("tallies are read");
    let stamps: Vec<i64> = stored.into_iter().flatten().map(|tally| tally.stamp).collect();
    assert_eq!(stamps, [10, 11, 9], "with the stamp that it was written under");
}

async fn tallies_of_timelines_are_apart(scene: &Scene) {
    let (one, other) = (scene.campaign("c"), scene.campaign("c1"));
    scene.write_tally(&one, 1, &[(0, b"one")]).await;
    scene.write_tally(&other, 1, &[(0, b"other")]).await;
    assert_eq!(scene.read_tallies(&one, &[0]).await, [Some(b"one".to_vec())]);
    assert_eq!(scene.read_tallies(&other, &[0]).await, [Some(b"other".to_vec())]);
}

async fn tallies_are_seen_all_or_none(scene: &Scene) {
    let timeline = scene.campaign("c");
    let cells: Vec<u32> = (0..20).collect();
    let write = async {
        for number in 1..=100_u8 {
            let bytes = [number];
            let cells: Vec<(u32, &[u8])> = cells.iter().map(|cell| (*cell, &bytes[..])).collect();
            scene.write_tally(&timeline, i64::from(number), &cells).await;
        }
    };
    let read = async {
        let mut last = None;
        while last != Some(vec![100]) {
            let found = scene.read_tallies(&timeline, &cells).await;
            assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "half a write was seen: {found:?}");
            assert!(found[0] >= last, "an earlier write was seen after a later one");
            last = found[0].clone();
            // A store may answer at once: let the writer go on.
            tokio::task::yield_now().await;
        }
    };
    future::join(write, read).await;
}

async fn many_tallies_are_one_write(scene: &Scene) {
    let timeline = scene.campaign("c");
    let bytes = vec![7; 200];
    let cells: Vec<(u32, &[u8])> = (0..350).map(|cell| (cell * 3, bytes.as_slice())).collect();
    scene.write_tally(&timeline, 1, &cells).await;
    let asked: Vec<u32> = (0..1050).collect();
    let found = scene.read_tallies(&timeline, &asked).await;
    let expected: Vec<_> = asked.iter().map(|cell| (cell % 3 == 0).then(|| bytes.clone())).collect();
    assert!(found == expected, "every third cell");
}

fn facts(email: &str) -> SendFacts {
    SendFacts {
        contact: Some(Uuid::from_u128(5)),
        email: Some(email.into()),
        campaign: Some(id("cmp:1")),
        automation: None,
        list: Some(id("l")),
        step: None,
    }
}

async fn what_a_send_knew_comes_back(scene: &Scene) {
    let until = scene.now.plus_ms(KEPT_MS);
    scene.write_send("m", &facts("a@b.example"), 1, until).await;
    scene.write_send("m1", &SendFacts::default(), 1, until).await;
    let messages = ["m1", "none", "m", "m"].map(|message| (scene.account.clone(), id(message)));
    let found = scene.store.read_sends(&messages).await.expect("read");
    let m = Some(facts("a@b.example"));
    assert_eq!(found, [Some(SendFacts::default()), None, m.clone(), m]);
    let sends: Vec<SendWrite> = (0..300)
        .map(|number| SendWrite {
            account: scene.account.clone(),
            message: id(&format!("many_{number}")),
            facts: facts(&format!("{number}@b.example")),
            stamp: 1,
            expires_at: until,
        })
        .collect();
    scene.store.write_sends(scene.now, &sends).await.expect("written");
    let messages: Vec<_> =
        sends.iter().rev().map(|send| (send.account.clone(), send.message.clone())).collect();
    let found = scene.store.read_sends(&messages).await.expect("read");
    let expected: Vec<_> = sends.iter().rev().map(|send| Some(send.facts.clone())).collect();
    assert_eq!(found, expected);
}

async fn the_earlier_send_stays(scene: &Scene) {
    let until = scene.now.plus_ms(KEPT_MS);
    // Greater for earlier: the broker's time, turned.
    let (earlier, later) = (-(scene.now.0 - 5000) * 1000, -scene.now.0 * 1000);
    for (message, order) in [("in_order", [earlier, later]), ("turned", [later, earlier])] {
        for stamp in order {
            let email = if stamp == earlier { "earlier@b.example" } else { "later@b.example" };
            scene.write_send(message, &facts(email), stamp, until).await;
        }
        assert_eq!(scene.read_send(message).await, Some(facts("earlier@b.example")), "{message}");
    }
}

async fn a_send_that_has_expired_is_not_written(scene: &Scene) {
    scene.write_send("m", &facts("a@b.example"), 1, scene.now).await;
    assert_eq!(scene.read_send("m").await, None);
}

async fn events_wait_until_they_are_removed(scene: &Scene) {
    let events = [scene.waiting("m", 9, "b"), scene.waiting("m", 9, "c"), scene.waiting("m", 5, "a")];
    let other = scene.waiting("m1", 5, "a");
    scene.put_waiting(&events).await;
    scene.put_waiting(std::slice::from_ref(&other)).await;
    assert_eq!(scene.read_waiting(&["m", "none"]).await, events);
    scene.put_waiting(&events[..1]).await;
    assert_eq!(scene.read_waiting(&["m"]).await, events, "a repeat changes nothing");
    scene.store.remove_waiting(&events[1..]).await.expect("removed");
    assert_eq!(scene.read_waiting(&["m", "m1"]).await, [events[0].clone(), other.clone()]);
    scene.store.remove_waiting(&[events[0].clone(), other]).await.expect("removed");
    assert_eq!(scene.read_waiting(&["m", "m1"]).await, []);
}

async fn an_event_may_wait_again(scene: &Scene) {
    let event = scene.waiting("m", 9, "a");
    for _ in 0..3 {
        scene.put_waiting(std::slice::from_ref(&event)).await;
        assert_eq!(scene.read_waiting(&["m"]).await, std::slice::from_ref(&event));
        scene.store.remove_waiting(std::slice::from_ref(&event)).await.expect("removed");
        assert_eq!(scene.read_waiting(&["m"]).await, []);
    }
}

async fn an_event_that_has_expired_does_not_wait(scene: &Scene) {
    scene.put_waiting(&[Waiting { expires_at: scene.now, ..scene.waiting("m", 9, "a") }]).await;
    assert_eq!(scene.read_waiting(&["m"]).await, []);
}

async fn waiting_events_are_told_apart(scene: &Scene) {
    // By message, time and id, each of which may begin like another.
    let events = [
        scene.waiting("m", 9, "a"),
        scene.waiting("m", 8, "a"),
        scene.waiting("m", 8, "a:"),
        scene.waiting("m:", 9, "a"),
        scene.waiting("m:a", 9, "a"),
    ];
    scene.put_waiting(&events).await;
    assert_eq!(scene.read_waiting(&["m"]).await, events[..3]);
    scene.store.remove_waiting(&events[1..2]).await.expect("removed");
    assert_eq!(scene.read_waiting(&["m", "m:", "m:a"]).await, [&events[..1], &events[2..]].concat());
    let many: Vec<Waiting> = (0..200).map(|number| scene.waiting(&format!("n{number}"), 1, "a")).collect();
    scene.put_waiting(&many).await;
    let messages: Vec<String> = (0..200).map(|number| format!("n{number}")).collect();
    let messages: Vec<&str> = messages.iter().map(String::as_str).collect();
    assert_eq!(scene.read_waiting(&messages).await.len(), 200);
}

async fn events_that_wait_are_read_some_at_a_time(scene: &Scene) {
    let mut events: Vec<Waiting> =
        (0..70).map(|number| scene.waiting("m", 9, &format!("e{number:02}"))).collect();
    events.extend((0..70).map(|number| scene.waiting("m", 8 - number / 10, &format!("e{number:02}"))));
    events.push(scene.waiting("m1", 5, "a"));
    scene.put_waiting(&events).await;
    let mut from: Vec<WaitingFrom> =
        ["m", "m0", "m1"].map(|message| WaitingFrom::all((scene.account.clone(), id(message)))).into();
    let (mut found, mut reads) = (Vec::new(), 0);
    while !from.is_empty() {
        let (some, more) = scene.store.read_waiting(&from, 1).await.expect("waiting events are read");
        assert!(!some.is_empty() || more.is_empty(), "{more:?}");
        // What was read may be removed before the rest is.
        scene.store.remove_waiting(&some[..some.len() / 2]).await.expect("removed");
        (from, reads) = (more, reads + 1);
        found.extend(some);
    }
    let key = |event: &Waiting| (event.message.clone(), event.at, event.id.clone());
    found.sort_by_key(key);
    events.sort_by_key(key);
    assert_eq!(found, events);
    assert!(reads > 3, "all was read in {reads} reads");
}

async fn a_reference_keeps_what_a_change_leaves_out(scene: &Scene) {
    let key = scene.reference(Kind::Contact, "5d1f4e6a-8f3b-4b8e-9d5a-000000000001");
    scene.write_reference(&key, 1, None, None, false).await;
    assert_eq!(scene.read_reference(&key).await, Some(reference(None, None, false)));
    scene.write_reference(&key, 2, None, Some("a@b.example"), false).await;
    scene.write_reference(&key, 3, Some("Ann"), None, false).await;
    assert_eq!(scene.read_reference(&key).await, Some(reference(Some("Ann"), Some("a@b.example"), false)));
    scene.write_reference(&key, 4, Some(""), None, false).await;
    assert_eq!(scene.read_reference(&key).await, Some(reference(Some(""), Some("a@b.example"), false)));
}

async fn the_later_change_of_each_field_stays(scene: &Scene) {
    let key = scene.reference(Kind::List, "l");
    scene.write_reference(&key, 20, Some("twenty"), None, false).await;
    scene.write_reference(&key, 10, Some("ten"), Some("ten@b.example"), true).await;
    let expected = reference(Some("twenty"), Some("ten@b.example"), false);
    assert_eq!(scene.read_reference(&key).await, Some(expected));
    // In one call, too, and in any order.
    let key = scene.reference(Kind::List, "at_once");
    let writes = [20, 30, 10].map(|stamp| {
        let name = Some(stamp.to_string().into());
        ReferenceWrite {
            reference: Reference { key: key.clone(), name, email: None, deleted: stamp == 30 },
            stamp,
        }
    });
    scene.store.write_references(&writes).await.expect("written");
    assert_eq!(scene.read_reference(&key).await, Some(reference(Some("30"), None, true)));
}

async fn a_deleted_reference_keeps_its_name(scene: &Scene) {
    let key = scene.reference(Kind::Campaign, "c:1");
    scene.write_reference(&key, 1, Some("Spring"), None, false).await;
    scene.write_reference(&key, 2, None, None, true).await;
    assert_eq!(scene.read_reference(&key).await, Some(reference(Some("Spring"), None, true)));
    scene.write_reference(&key, 3, Some("Summer"), None, false).await;
    assert_eq!(scene.read_reference(&key).await, Some(reference(Some("Summer"), None, false)));
}

async fn references_come_back_in_the_order_asked_for(scene: &Scene) {
    let kinds = [Kind::Campaign, Kind::Automation, Kind::List, Kind::Contact];
    let mut keys: Vec<ReferenceKey> = kinds.map(|kind| scene.reference(kind, "x")).into();
    keys.extend(["x1", "x:", "X"].map(|name| scene.reference(Kind::Campaign, name)));
    for (at, key) in keys.iter().enumerate() {
        scene.write_reference(key, 1, Some(&at.to_string()), None, false).await;
    }
    let asked: Vec<ReferenceKey> =
        keys.iter().rev().cloned().chain([scene.reference(Kind::List, "none")]).collect();
    let found = scene.store.read_references(&asked).await.expect("read");
    let expected: Vec<_> = (0..keys.len())
        .rev()
        .map(|at| Some(reference(Some(&at.to_string()), None, false)))
        .chain([None])
        .collect();
    assert_eq!(found, expected);
}

async fn a_known_timeline_stays_known(scene: &Scene) {
    let known: Vec<TimelineId> = (0..50).map(|number| scene.campaign(&format!("c{number}"))).collect();
    let contact = TimelineId::contact(&scene.account, Uuid::from_u128(1));
    scene.store.mark_known(&known).await.expect("marked");
    scene.store.mark_known(&[known[0].clone(), contact.clone()]).await.expect("marked again");
    for timeline in known.iter().chain([&contact]) {
        assert!(scene.store.is_known(timeline).await.expect("answered"), "{timeline:?}");
    }
    for timeline in
        [scene.campaign("c"), scene.campaign("c00"), TimelineId::contact(&scene.account, Uuid::nil())]
    {
        assert!(!scene.store.is_known(&timeline).await.expect("answered"), "{timeline:?}");
    }
}

async fn of_a_timeline_without_a_tree_an_earlier_owners_tree_does_not_show(scene: &Scene) {
    let ids: Vec<TimelineId> = (0..40).map(|number| scene.campaign(&format!("t{number}"))).collect();
    scene.store.mark_known(&ids).await.expect("marked");
    let root = |id: &TimelineId, stamp, bytes: &[u8]| TallyWrite {
        timeline: id.clone(),
        stamp,
        ttl_s: 3600,
        cells: vec![(ROOT_CELL, bytes.to_vec())],
    };
    let none = |id| root(id, 100, Root::NONE);
    scene.store.write_tallies(&ids.iter().map(none).collect::<Vec<_>>()).await.expect("written");
    let head = |bytes: &[u8]| Head { known: true, promised: false, root: Some(bytes.to_vec()) };
    assert_eq!(scene.store.read_heads(&ids).await.expect("read"), vec![head(Root::NONE); ids.len()]);
    scene.store.write_tallies(&[root(&ids[0], 99, &[7])]).await.expect("written");
    assert_eq!(scene.store.read_heads(&ids[..1]).await.expect("read"), [head(Root::NONE)]);
    scene.store.write_tallies(&[root(&ids[0], 101, &[7])]).await.expect("written");
    scene.store.write_tallies(&[none(&ids[0])]).await.expect("written");
    assert_eq!(scene.store.read_heads(&ids[..1]).await.expect("read"), [head(&[7])]);
}

async fn a_promise_stays_where_rows_are_written_unseen(scene: &Scene) {
    let ids: Vec<TimelineId> = (0..40).map(|number| scene.campaign(&format!("p{number}"))).collect();
    scene.store.mark_known(&ids).await.expect("marked");
    scene.store.promise_trees(&ids[1..]).await.expect("promised");
    scene.store.promise_trees(&ids[39..]).await.expect("promised again");
    scene.store.promise_trees(&[]).await.expect("nothing to do");
    scene.store.mark_known(&ids).await.expect("marked again");
    let promised = scene.store.writes_unseen();
    let heads = scene.store.read_heads(&ids).await.expect("read");
    for (at, head) in heads.into_iter().enumerate() {
        assert_eq!(head, Head { known: true, promised: promised && at > 0, root: None }, "{at}");
    }
}

async fn a_head_tells_whether_its_timeline_is_known_and_its_root(scene: &Scene) {
    // More than one request reads.
    let timelines: Vec<TimelineId> = (0..100).map(|number| scene.campaign(&format!("c{number}"))).collect();
    let is_known = |at: usize| !at.is_multiple_of(3);
    let has_root = |at: usize| at % 3 == 1;
    let known: Vec<TimelineId> =
        timelines.iter().enumerate().filter(|(at, _)| is_known(*at)).map(|(_, id)| id.clone()).collect();
    scene.store.mark_known(&known).await.expect("marked");
    for at in (0..timelines.len()).filter(|at| has_root(*at)) {
        let root = at.to_string();
        scene.write_tally(&timelines[at], 1, &[(0, root.as_bytes()), (1, b"node")]).await;
    }
    let heads = scene.store.read_heads(&timelines).await.expect("read");
    assert_eq!(heads.len(), timelines.len());
    for (at, head) in heads.into_iter().enumerate() {
        let root = has_root(at).then(|| at.to_string().into_bytes());
        assert_eq!(head, Head { known: is_known(at), promised: false, root }, "{at}");
    }
    assert_eq!(scene.store.read_heads(&[]).await.expect("read"), []);
}

async fn first_parts_come_in_the_order_asked_for(scene: &Scene) {
    let timelines: Vec<TimelineId> =
        (0..100).rev().map(|number| scene.campaign(&format!("c{number}"))).collect();
    for (at, timeline) in timelines.iter().enumerate().filter(|(at, _)| at.is_multiple_of(7)) {
        let name = format!("e{at}");
        scene
            .write(
                timeline,
                0,
                &[scene.row(EventType::Sent, 2, &name), scene.row(EventType::Opened, 1, &name)],
            )
            .await;
        scene.write(timeline, 1, &[scene.row(EventType::Sent, 3, &name)]).await;
    }
    let parts = scene.store.read_first_parts(&timelines).await.expect("read");
    assert_eq!(parts.len(), timelines.len());
    for (at, rows) in parts.into_iter().enumerate() {
        let types: Vec<EventType> = rows.iter().map(|row| row.key.event_type).collect();
        assert!(rows.iter().all(|row| row.body.is_empty() && *row.key.position.id == *format!("e{at}")));
        assert_eq!(
            types,
            if at.is_multiple_of(7) { vec![EventType::Opened, EventType::Sent] } else { vec![] },
            "{at}"
        );
    }
}

async fn epochs_rise_under_many_takers(scene: &Scene) {
    let scope = format!("{}/0", scene.account);
    assert_eq!(scene.store.read_epoch(&scope).await.expect("read"), 0);
    let first = scene.store.take_epoch(&scope).await.expect("taken");
    assert_eq!((first, scene.store.read_epoch(&scope).await.expect("read")), (1, 1));
    let takers = (0..20).map(|_| {
        let (store, scope) = (Arc::clone(&scene.store), scope.clone());
        tokio::spawn(async move { store.take_epoch(&scope).await.expect("taken") })
    });
    let taken = future::try_join_all(takers).await.expect("no taker panics");
    let different: BTreeSet<u64> = taken.iter().copied().collect();
    assert_eq!(different.len(), 20, "{taken:?}");
    assert!(different.iter().all(|epoch| *epoch > first), "{taken:?}");
    let after = scene.store.take_epoch(&scope).await.expect("taken");
    assert!(different.last().is_some_and(|last| after > *last), "{after} after {taken:?}");
    assert_eq!(scene.store.read_epoch(&scope).await.expect("read"), after);
}

async fn epochs_of_scopes_are_apart(scene: &Scene) {
    for partition in [1, 11] {
        let scope = format!("{}/{partition}", scene.account);
        assert_eq!(scene.store.take_epoch(&scope).await.expect("taken"), 1);
        assert_eq!(scene.store.take_epoch(&scope).await.expect("taken"), 2);
    }
}

fn api_key(scene: &Scene, name: &str) -> KeyRecord {
    KeyRecord {
        id: format!("{}-{name}", scene.account),
        digest: std::array::from_fn(|at| at as u8 ^ 0xa5),
        account: scene.account.clone(),
        permissions: vec![Permission::EventsWrite, Permission::CampaignsRead],
        created_at: scene.now,
        expires_at: Some(scene.now.plus_ms(KEPT_MS)),
        revoked_at: None,
    }
}

async fn a_key_comes_back_as_it_was_written(scene: &Scene) {
    let bare = KeyRecord { permissions: Vec::new(), expires_at: None, ..api_key(scene, "bare") };
    let keys = [api_key(scene, "a"), api_key(scene, "ab"), bare];
    for key in &keys {
        scene.store.write_key(key).await.expect("written");
    }
    for key in &keys {
        assert_eq!(scene.store.read_key(&key.id).await.expect("read").as_ref(), Some(key));
    }
    let listed = scene.store.list_keys().await.expect("listed");
    for key in &keys {
        assert_eq!(listed.iter().filter(|listed| *listed == key).count(), 1, "{}", key.id);
    }
}

async fn a_key_is_written_whole(scene: &Scene) {
    let key = api_key(scene, "a");
    scene.store.write_key(&key).await.expect("written");
    let revoked = KeyRecord {
        permissions: vec![Permission::ContactsRead],
        expires_at: None,
        revoked_at: Some(scene.now),
        ..key
    };
    scene.store.write_key(&revoked).await.expect("written");
    assert_eq!(scene.store.read_key(&revoked.id).await.expect("read"), Some(revoked));
}
