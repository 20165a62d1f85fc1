//! Trying again, with back-off and no end: a store or log that is away stops the flow, it does not lose it.

use std::future::Future;
use std::time::Duration;

use event_store::StoreError;

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
                telemetry::metrics::RETRIES.with_label_values(&[name]).inc();
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
