//! Bytes as they come back from the stores, sound or damaged: an error or a value, which is written as it was read. What is done
//! with it next must not panic either.

use bytes::Bytes;
use event_log::embedded::stored as log;
use event_store::embedded::stored as store;
use fuzz::{Run, Target};
use timeline::codec::{Reader, Writer};
use timeline::row::{Placing, RowKey, decode_placed, encode_placed, project};
use timeline::send::SendFacts;
use timeline::tally::{Node, Root, Sizes, Tree};
use timeline::{AccountId, EventType, Id, Position, RowBody, Span, TimelineId, Timestamp, TypeSet};

use crate::decoders::events;
use crate::{NOW, hold, same};

/// Trees that grow at once.
fn small() -> Sizes {
    Sizes {
        leaf_rows_max: 4,
        node_leaves_max: 3,
        scan_rows_max: 2,
        part_rows_max: 20,
        pair_rows_min: 10,
        ..Sizes::default()
    }
}

pub(crate) fn targets() -> Vec<Target> {
    let target = |name, seeds, start| Target { name, seeds, words: &[], bytes_max: 2048, start };
    vec![
        target("row_bodies", row_bodies, start_row_bodies),
        target("placed_rows", placed_rows, start_placed_rows),
        target("tally_nodes", || cells(false), start_nodes),
        target("tally_roots", || cells(true), start_roots),
        target(
            "send_facts",
            || events().iter().map(|event| SendFacts::of(event).encode()).collect(),
            || {
                Box::new(|bytes| match SendFacts::decode(bytes) {
                    Ok(facts) => {
                        same("facts", &SendFacts::decode(&facts.encode()), &Ok(facts)).map(|()| "sound")
                    }
                    Err(_) => Ok("damaged"),
                })
            },
        ),
        target("store_keys", store_keys, start_store_keys),
        target("store_cells", store_cells, || again(store::cell)),
        target("store_waiting", store_waiting, || {
            let (account, message) = (account(), Id::parse("m").expect("valid"));
            again(move |bytes| store::waiting(&account, &message, bytes))
        }),
        target("store_references", store_references, || again(store::reference)),
        target("store_api_keys", store_api_keys, || again(store::api_key)),
        target("log_records", log_records, start_log_records),
    ]
}

fn account() -> AccountId {
    AccountId::parse("acme").expect("valid")
}

/// What reads and writes again must, given what it wrote, write that.
fn again(read: impl Fn(&[u8]) -> Option<Vec<u8>> + 'static) -> Run {
    Box::new(move |bytes| {
        let Some(once) = read(bytes) else { return Ok("damaged") };
        same("what was written", &read(&once), &Some(once)).map(|()| "sound")
    })
}

fn row_bodies() -> Vec<Vec<u8>> {
    let rows = events().into_iter().flat_map(|event| project(&event, NOW, Placing::Complete));
    rows.map(|row| row.body).collect()
}

fn start_row_bodies() -> Run {
    Box::new(|bytes| match RowBody::decode(bytes) {
        Ok(body) => {
            same("a rank", &RowBody::rank_of(bytes), &body.rank)?;
            same("a body", &RowBody::decode(&body.encode()), &Ok(body)).map(|()| "sound")
        }
        Err(_) => {
            RowBody::rank_of(bytes);
            Ok("damaged")
        }
    })
}

fn placed_rows() -> Vec<Vec<u8>> {
    let placed =
        events().into_iter().map(|event| encode_placed(&project(&event, NOW, Placing::Completed), NOW));
    placed.collect()
}

fn start_placed_rows() -> Run {
    Box::new(|bytes| {
        let Ok((rows, at)) = decode_placed(bytes) else { return Ok("damaged") };
        let mut keys: Vec<RowKey> = rows.iter().map(|row| row.key.clone()).collect();
        keys.sort();
        keys.dedup_by(|one, next| one.position == next.position);
        grow(Tree::build(Vec::new(), small()), keys)?;
        for row in &rows {
            hold(row.timeline.partition(64) < 64, || format!("{:?}", row.timeline))?;
        }
        same("placed rows", &decode_placed(&encode_placed(&rows, at)), &Ok((rows, at))).map(|()| "sound")
    })
}

/// Takes rows into a tree, as its owner does, whose store holds no others.
fn grow(mut tree: Tree, keys: Vec<RowKey>) -> Result<(), String> {
    for read in tree.missing_nodes(keys.iter().map(|key| &key.position)) {
        tree.put_counted(&read, &[]);
    }
    for read in tree.missing_leaves(keys.iter().map(|key| &key.position), 1) {
        tree.put_leaf(&read, Vec::new());
    }
    for key in &keys {
        tree.part_for(&key.position);
    }
    tree.insert(keys);
    tree.drop_expired(NOW);
    for (cell, bytes) in tree.take_dirty() {
        let is_sound = Root::decode(&bytes).is_ok() || Node::decode(&bytes).is_ok();
        hold(is_sound, || format!("cell {cell} is damaged as it is written"))?;
    }
    Ok(())
}

/// The cells of a tree that has grown: the root, or the nodes.
fn cells(root: bool) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut tree = Tree::build(Vec::new(), small());
    for batch in 0_i64..12 {
        let keys = (0..9).map(|number| RowKey {
            position: Position {
                at: Timestamp(NOW.0 - 40_000 + batch * 1000 + number % 3),
                id: format!("e{number}").into(),
            },
            event_type: EventType::ALL[(batch + number) as usize % EventType::ALL.len()],
        });
        tree.insert(keys.collect());
        let cells = tree.take_dirty().into_iter();
        all.extend(
            cells.filter(|(cell, _)| (*cell == timeline::tally::ROOT_CELL) == root).map(|(_, bytes)| bytes),
        );
    }
    all
}

fn start_nodes() -> Run {
    Box::new(|bytes| {
        let Ok(node) = Node::decode(bytes) else { return Ok("damaged") };
        let total = node.counts().all();
        let leaves: u64 = node.leaves.iter().map(|leaf| leaf.counts.all()).sum();
        same("a node's number", &total, &leaves)?;
        for at in 0..node.leaves.len() {
            let span = node.leaf_span(at);
            hold(node.span.covers(&span), || format!("leaf {at} is outside"))?;
            same("the leaf of its first position", &node.leaf_at(&span.from), &at)?;
        }
        same("a node", &Node::decode(&node.encode()), &Ok(node)).map(|()| "sound")
    })
}

fn start_roots() -> Run {
    Box::new(|bytes| {
        let Ok(root) = Root::decode(bytes) else { return Ok("damaged") };
        let total: u64 = root.entries.iter().map(|entry| entry.counts.matching(TypeSet::ALL)).sum();
        for at in 0..root.entries.len() {
            let span = root.entry_span(at);
            same("the entry of its first position", &root.entry_at(&span.from), &at)?;
        }
        hold(root.entry_at(&Position::max()) < root.entries.len(), || "no last entry".to_owned())?;
        same("a root", &Root::decode(&root.encode()), &Ok(root.clone()))?;
        if gives_out_last_numbers(bytes) {
            return Ok("as large as none is");
        }
        let tree = Tree::take_over(root, small());
        same("the rows of a tree", &tree.rows(), &total)?;
        let key = |at: i64, id: &str| RowKey {
            position: Position { at: Timestamp(at), id: id.into() },
            event_type: EventType::Opened,
        };
        let keys = (0..6)
            .map(|number| key(NOW.0 + number, "e"))
            .chain((0..6).map(|number| key(0, &number.to_string())));
        let mut keys: Vec<RowKey> = keys.collect();
        keys.sort();
        grow(tree, keys).map(|()| "sound")
    })
}

/// Whether a root has given out so many cells or parts that a tree which goes on growing would soon have none left.
fn gives_out_last_numbers(root: &[u8]) -> bool {
    let next =
        Reader::new(root, root[0], "tally root").and_then(|mut bytes| Ok([bytes.number()?, bytes.number()?]));
    next.is_ok_and(|next| next.into_iter().any(|next| next > 1 << 30))
}

/// A part, the number of its bytes before it, and a row behind it.
fn store_keys() -> Vec<Vec<u8>> {
    let rows = events().into_iter().flat_map(|event| project(&event, NOW, Placing::Complete));
    let key = |timeline: &TimelineId, row: &RowKey| {
        let mut key = store::part_of(timeline, 7);
        let part_bytes = key.len();
        key.push(row.event_type as u8);
        key.extend((row.position.at.0.cast_unsigned() ^ 1 << 63).to_be_bytes().map(|byte| !byte));
        key.extend(row.position.id.bytes().map(|byte| !byte));
        key.push(u8::MAX);
        [&[part_bytes as u8][..], &key].concat()
    };
    rows.map(|row| key(&row.timeline, &row.key)).collect()
}

fn start_store_keys() -> Run {
    Box::new(|bytes| {
        let Some((part_bytes, key)) = bytes.split_first() else { return Ok("empty") };
        let part_bytes = usize::from(*part_bytes);
        let Some((row, again)) = store::row_key(key, part_bytes) else { return Ok("none of ours") };
        let read = store::row_key(&again, part_bytes).map(|(row, _)| row);
        same("a row's key", &read, &Some(row.clone()))?;
        let (head, tail) = (Span::all(), Position::at_start_of(row.position.at));
        hold(head.contains(&row.position) || row.position >= Position::max(), || format!("{row:?}"))?;
        hold(tail <= row.position, || format!("{row:?}"))?;
        grow(Tree::build(Vec::new(), small()), vec![row]).map(|()| "a row")
    })
}

fn store_cells() -> Vec<Vec<u8>> {
    let head = |kind: u8| [&[kind][..], &7_i64.to_le_bytes(), &NOW.0.to_le_bytes()].concat();
    let kinds = [16, 17, 18, 19, 0].map(head);
    kinds.iter().cloned().chain(kinds.iter().map(|head| [&head[..], b"body"].concat())).collect()
}

fn store_waiting() -> Vec<Vec<u8>> {
    let mut out = Writer::new(1);
    out.signed(NOW.0);
    out.bytes(b"e1");
    out.signed(NOW.0);
    out.signed(NOW.0 + 1);
    out.bytes(br#"{"id":"e1"}"#);
    vec![out.finish()]
}

fn store_references() -> Vec<Vec<u8>> {
    let mut out = Writer::new(1);
    for text in ["Spring Sale", "jane@example.com"] {
        out.byte(1);
        out.signed(NOW.0);
        out.bytes(text.as_bytes());
    }
    out.signed(NOW.0);
    out.byte(1);
    vec![out.finish(), vec![1, 0, 0, 0, 0]]
}

fn store_api_keys() -> Vec<Vec<u8>> {
    let mut out = Writer::new(1);
    out.bytes(b"396cac2ee751fded");
    out.raw(&[7; 32]);
    out.bytes(b"acme");
    out.number(2);
    out.bytes(b"campaigns:read");
    out.bytes(b"events:write");
    out.signed(NOW.0);
    for at in [1, 0] {
        out.byte(at);
        out.signed(NOW.0 * i64::from(at));
    }
    vec![out.finish()]
}

/// Records without their checksum, which each run puts in.
fn log_records() -> Vec<Vec<u8>> {
    let record = |parts: u8, key: &[u8], value: &[u8]| {
        let body =
            [&[0; 8][..], &NOW.0.to_le_bytes(), &[1, parts], &(key.len() as u32).to_le_bytes(), key, value]
                .concat();
        [&[0xff, 0xb5, 0x4c, 0x01][..], &(body.len() as u32).to_le_bytes(), &[0; 4], &body].concat()
    };
    vec![
        record(3, b"key", b"value"),
        record(2, b"", b"{}"),
        record(1, b"campaign:a:b", b""),
        record(0, b"", b""),
    ]
}

fn start_log_records() -> Run {
    Box::new(|bytes| {
        let judge = |bytes: &[u8]| match log::record(&Bytes::copy_from_slice(bytes)) {
            Ok(again) => {
                let read = log::record(&Bytes::from(again.clone()));
                same("a record", &read, &Ok(again)).map(|()| "sound")
            }
            Err(Some(needed)) => {
                hold(needed > bytes.len() && needed < 65 << 20, || format!("{needed} are needed"))?;
                Ok("short")
            }
            Err(None) => Ok("damaged"),
        };
        judge(bytes)?;
        // Behind what the checksum would tell: the length that the header says, if it is there, else all.
        let mut repaired = bytes.to_vec();
        let said = bytes
            .get(4..8)
            .map_or(0, |length| length.iter().rev().fold(0, |all, byte| all << 8 | usize::from(*byte)));
        if said.saturating_add(12) <= repaired.len() {
            repaired.truncate(said + 12);
        }
        log::repair(&mut repaired);
        judge(&repaired)
    })
}
