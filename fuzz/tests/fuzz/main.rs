//! The targets: whatever strangers send, and whatever the stores give back.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `decoders` | raw events and references |
//! | `http` | queries, paths, keys and bodies, through the routes as they are served |
//! | `stored` | rows, tallies, keys, cells and records as they come back |

mod decoders;
mod http;
mod stored;

use std::process::ExitCode;

use fuzz::Target;
use timeline::Timestamp;

#[global_allocator]
static ALLOCATOR: fuzz::memory::Counting = fuzz::memory::Counting;

/// It is 2027-01-15T08:00:00Z: after all that the examples tell of.
const NOW: Timestamp = Timestamp(1_800_000_000_000);

fn main() -> ExitCode {
    let targets: Vec<Target> =
        [decoders::targets(), http::targets(), stored::targets()].into_iter().flatten().collect();
    fuzz::command::main(&targets)
}

/// Holds, or says what does not.
fn hold(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Holds that two are the same.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, one: &T, other: &T) -> Result<(), String> {
    hold(one == other, || format!("{what}: {one:?} is not {other:?}"))
}
