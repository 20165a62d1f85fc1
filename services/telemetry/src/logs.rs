//! Logs: lines for people or JSON for machines, to standard error. Standard output belongs to what a command prints.

use std::io::IsTerminal;
use std::panic::PanicHookInfo;

use anyhow::Context;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::traces;

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// A line of text.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        match text {
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            _ => Err(format!("log format '{text}': expected text or json")),
        }
    }
}

/// Begins to log what `filter` lets through (`info`, or directives such as `info,backstamp=debug`), panics included; and to send traces of
/// it, where that is asked for.
///
/// Fails where the filter is invalid, something else logs already, or traces cannot go where they are to.
pub fn start(format: Format, filter: &str, traces: Option<&traces::Settings>) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("log filter '{filter}'"))?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let lines = match format {
        Format::Text => lines.with_target(false).boxed(),
        Format::Json => {
            lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
        }
    };
    let tracer = traces.map(traces::start).transpose()?;
    let spans = tracer.map(|tracer| {
        let layer = tracing_opentelemetry::layer().with_tracer(tracer);
        layer.with_location(false).with_threads(false).with_tracked_inactivity(false)
    });
    let started = tracing_subscriber::registry().with(spans).with(lines).with(filter).try_init();
    started.map_err(|error| anyhow::anyhow!("logs cannot start: {error}"))?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Logs where a panic was, and its message where that is a literal: a formatted one may hold what does not belong in
/// a log.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let message = panic.payload().downcast_ref::<&'static str>().copied().unwrap_or("(formatted)");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    tracing::error!(message = "panic", panic = message, place);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_read() {
        assert_eq!("json".parse(), Ok(Format::Json));
        assert!("yaml".parse::<Format>().is_err());
        assert!(start(Format::Text, "info,=,=", None).is_err());
    }
}
