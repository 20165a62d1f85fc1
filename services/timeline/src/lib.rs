//! The domain of Backstamp, without I/O: raw events and references, what they mean, where they show, how they
//! are counted and how a page is found. Time, randomness and limits come in as arguments.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`id`] | account ids, opaque ids |
//! | [`time`] | instants in milliseconds, RFC 3339 in and out |
//! | [`event`] | event types, the raw event, its decoder |
//! | [`mod@reference`] | names of campaigns, automations and lists, addresses of contacts; their decoder |
//! | [`filter`] | which clicks are list management |
//! | [`send`] | what a `send` knew, and what an event takes from it |
//! | [`row`] | timelines, positions, rows and their stored form; the projection of an event into rows |
//! | [`order`] | what an operator asks of a timeline's owner |
//! | [`tally`] | the counted tree beside a timeline's rows |
//! | [`key`] | API keys: token, checksum, digest, permissions |

pub mod codec;
pub mod event;
pub mod filter;
pub mod id;
pub mod key;
pub mod order;
pub mod reference;
pub mod row;
pub mod send;
pub mod tally;
pub mod time;

pub use event::{Event, EventType, Refusal, TypeSet};
pub use id::{AccountId, Id};
pub use order::Order;
pub use row::{Position, Row, RowBody, Span, Subject, TimelineId};
pub use time::Timestamp;
