//! Every request to a store is timed, and counted where it fails.

use std::time::Instant;

use telemetry::metrics::{STORE_ERRORS, STORE_SECONDS};

use crate::StoreError;

/// Awaits a request under the short name of its statement.
pub(crate) async fn timed<T>(
    statement: &'static str,
    request: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let begun = Instant::now();
    let result = request.await;
    STORE_SECONDS.with_label_values(&[statement]).observe(begun.elapsed().as_secs_f64());
    result.inspect_err(|_| STORE_ERRORS.with_label_values(&[statement]).inc())
}
