//! Trying again, with back-off and no end: a store or log that is away stops the flow, it does not lose it.

use std::future::Future;
use std::time::Duration;

use event_store::StoreError;
use telemetry::metrics::{BLOCKED, RETRIES};

/// The first wait between tries.
pub const RETRY_WAIT_MIN: Duration = Duration::from_millis(50);
/// The longest.
pub const RETRY_WAIT_MAX: Duration = Duration::from_secs(5);

/// Runs `step` until it succeeds. Whoever must stop drops the future: between two awaits nothing is half done that a later
/// owner would not find.
pub async fn until_done<T, E: Failure, F: Future<Output = Result<T, E>>>(
    name: &'static str,
    mut step: impl FnMut() -> F,
) -> T {
    let mut wait = RETRY_WAIT_MIN;
    let mut tries = 0_u32;
    let mut blocked = None;
    loop {
        match step().await {
            Ok(done) => {
                if tries > 0 {
                    tracing::info!(step = name, tries, "went through");
                }
                return done;
            }
            Err(error) => {
                tries += 1;
                blocked.get_or_insert_with(|| Blocked::new(name));
                RETRIES.with_label_values(&[name]).inc();
                tracing::warn!(
                    step = name,
                    tries,
                    wait_ms = wait.as_millis(),
                    error = error.describe(),
                    "failed, trying again"
                );
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY_WAIT_MAX);
            }
        }
    }
}

/// Shows that a step is blocked, for as long as it lives.
struct Blocked(&'static str);

impl Blocked {
    fn new(step: &'static str) -> Blocked {
        BLOCKED.with_label_values(&[step]).inc();
        Blocked(step)
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        BLOCKED.with_label_values(&[self.0]).dec();
    }
}

/// An error that a log line can tell whole.
pub trait Failure {
    /// The error and its causes in one line.
    fn describe(&self) -> String;
}

impl Failure for StoreError {
    fn describe(&self) -> String {
        self.chain().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Away;

    impl Failure for Away {
        fn describe(&self) -> String {
            "away".to_owned()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_is_blocked_from_its_first_failure_until_it_goes_through() {
        let blocked = || BLOCKED.with_label_values(&["test"]).get();
        let mut seen = Vec::new();
        until_done("test", || {
            seen.push(blocked());
            let goes_through = seen.len() == 3;
            async move { if goes_through { Ok(()) } else { Err(Away) } }
        })
        .await;
        assert_eq!((seen, blocked()), (vec![0, 1, 1], 0));
    }
}
