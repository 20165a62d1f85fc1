//! What goes wrong with the event log.

use std::error::Error;

use telemetry::metrics::LOG_ERRORS;

/// A request to the event log failed. One variant for each thing that a caller can do about it.
///
/// The message says what was tried; why it failed is in the chain of [`source`](Error::source)s.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log is away, busy or not set up yet: the same request may succeed later.
    #[error("{operation}: the event log is away")]
    Away {
        /// What was tried: a label of few values.
        operation: &'static str,
        /// Why it failed.
        source: Cause,
    },
    /// The log will not do this, however often it is asked.
    #[error("{operation}: refused by the event log")]
    Refused {
        /// What was tried: a label of few values.
        operation: &'static str,
        /// Why it failed.
        source: Cause,
    },
    /// The log's files are not what was written. Nothing is repaired.
    #[error("{operation}: the event log is damaged")]
    Damaged {
        /// What was tried: a label of few values.
        operation: &'static str,
        /// Where the damage is.
        source: Cause,
    },
}

/// An inner error, of any kind.
pub type Cause = Box<dyn Error + Send + Sync>;

impl LogError {
    /// A failure that may pass; counted.
    pub(crate) fn away(operation: &'static str, cause: impl Into<Cause>) -> LogError {
        count(operation);
        LogError::Away { operation, source: cause.into() }
    }

    /// A failure that will not pass; counted.
    pub(crate) fn refused(operation: &'static str, cause: impl Into<Cause>) -> LogError {
        count(operation);
        LogError::Refused { operation, source: cause.into() }
    }

    /// Files that are not what was written; counted.
    pub(crate) fn damaged(operation: &'static str, cause: impl Into<Cause>) -> LogError {
        count(operation);
        LogError::Damaged { operation, source: cause.into() }
    }

    /// What was tried: `append`, `commit`, `read` …
    pub fn operation(&self) -> &'static str {
        match self {
            LogError::Away { operation, .. }
            | LogError::Refused { operation, .. }
            | LogError::Damaged { operation, .. } => operation,
        }
    }

    /// The failure and its causes in one line, for a log.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }

    /// Whether the same request may succeed later.
    pub fn may_pass(&self) -> bool {
        matches!(self, LogError::Away { .. })
    }
}

fn count(operation: &'static str) {
    LOG_ERRORS.with_label_values(&[operation]).inc();
}
