//! Black-box tests of the whole: the real program, a real Kafka, a real CQL store.
//!
//! The tests themselves are in `tests/tests/`. Here is what they stand on:
//!
//! - [`servers`]: one Kafka and one Cassandra for a whole test process, started when first asked for.
//! - [`kafka`]: [`Topics`](kafka::Topics) publishes, reads back and tells the offsets.
//! - [`program`]: the `backstamp` program, built once, started, killed, stopped.
//! - [`deployment`]: `ingest` and `query` by the piece, with a sender; [`ledger`]: where each event is that was acknowledged.
//! - [`proxy`] and [`full_disk`]: what may come between the program and a server, and a server and its disk.
//! - [`stack`]: Backstamp as a whole, in one process or on real servers, and [`contract`]: what either has to answer.
//! - [`debian`]: programs of Debian's, and [`prometheus`], which is one of them.
//! - [`scratch`]: directories that go with the test process.
//! - [`trial`]: a history on a server, and the model that judges what is answered; [`Seed`] draws both.
//! - [`eventually()`] in place of a sleep, [`unique_name`] in place of an agreement between tests.
//!
//! Nothing that is started here outlives the test process, however that ends. Linux only.

pub mod check;
pub mod client;
pub mod contract;
pub mod debian;
pub mod deployment;
mod eventually;
pub mod full_disk;
pub mod history;
pub mod kafka;
pub mod ledger;
pub mod model;
mod process;
pub mod program;
pub mod prometheus;
pub mod proxy;
pub mod scratch;
mod seed;
pub mod servers;
pub mod stack;
pub mod trial;

pub use eventually::eventually;
pub use seed::Seed;

/// A name that no other test has, such as `mail_1f0c9a54e2b7`: fit for a keyspace, a consumer group, an
/// account and a topic.
///
/// `prefix` is to hold at most 35 characters of `[a-z0-9_]` and start with a letter: a keyspace's name ends at 48.
pub fn unique_name(prefix: &str) -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("{prefix}_{}", &random[..12])
}
