//! Waiting for a condition, in place of sleeping for a time.

use std::panic::Location;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// Tries again until `attempt` succeeds, and hands on what it brought.
///
/// `attempt` says what it still misses by its error: `ensure!(total == 3, "total is {total}")`.
///
/// # Panics
///
/// Once `deadline` has passed, with the last attempt's error.
#[track_caller]
pub fn eventually<T>(
    deadline: Duration,
    mut attempt: impl AsyncFnMut() -> anyhow::Result<T>,
) -> impl Future<Output = T> {
    let caller = Location::caller();
    async move {
        let end = Instant::now() + deadline;
        let mut pause = PAUSE_FIRST;
        let mut last = String::from("the first attempt did not end");
        while let Ok(outcome) = timeout_at(end, attempt()).await {
            match outcome {
                Ok(value) => return value,
                Err(error) => last = format!("{error:#}"),
            }
            if Instant::now() + pause >= end {
                break;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        panic!("not within {deadline:?}, as {caller} waits for: {last}");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use anyhow::{anyhow, ensure};

    use super::*;

    #[tokio::test]
    async fn what_the_first_success_brings_is_handed_on() {
        let tries = Cell::new(0);
        let answer = eventually(Duration::from_secs(5), async || {
            tries.set(tries.get() + 1);
            ensure!(tries.get() == 3, "only {} tries so far", tries.get());
            Ok("there")
        });
        assert_eq!(answer.await, "there");
    }

    #[tokio::test]
    #[should_panic(expected = "waits for: not there")]
    async fn the_last_error_is_shown_at_the_deadline() {
        eventually(Duration::from_millis(30), async || anyhow::Result::<()>::Err(anyhow!("not there"))).await;
    }

    #[tokio::test]
    #[should_panic(expected = "waits for: the first attempt did not end")]
    async fn an_attempt_that_hangs_ends_at_the_deadline() {
        eventually(Duration::from_millis(30), std::future::pending::<anyhow::Result<()>>).await;
    }
}
