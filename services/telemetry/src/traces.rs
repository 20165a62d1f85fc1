//! Traces, by setting: requests, and records on their way through the first stage, as spans of OpenTelemetry, sent over OTLP/HTTP.
//!
//! Whose trace it is, is taken from `traceparent` (W3C Trace Context): a header of HTTP requests and of Kafka's records. `collect` hands
//! it on to the records that it publishes. While nothing was started here, none of this does anything.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The header's name, over HTTP and in Kafka.
pub const TRACEPARENT: &str = "traceparent";

/// How long an export may take, and the last one when the process ends.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Where traces go.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// A collector's address, `http://host:4318`.
    pub endpoint: String,
    /// How many of the traces that begin here are kept, from 0 to 1. Whoever begins one elsewhere decides for us.
    pub sample_ratio: f64,
    /// What this process is called.
    pub service: String,
}

static STARTED: OnceLock<(SdkTracerProvider, SdkTracer)> = OnceLock::new();

/// Begins to send traces; they come from spans once the tracer is a layer of the subscriber.
pub(crate) fn start(settings: &Settings) -> anyhow::Result<SdkTracer> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{}/v1/traces", settings.endpoint.trim_end_matches('/')))
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .with_context(|| format!("traces cannot go to '{}'", settings.endpoint))?;
    let resource = Resource::builder_empty().with_service_name(settings.service.clone()).build();
    let sampled = Sampler::TraceIdRatioBased(settings.sample_ratio);
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(sampled)))
        .with_resource(resource)
        .build();
    let tracer = provider.tracer("backstamp");
    let (_, tracer) = STARTED.get_or_init(|| (provider, tracer));
    Ok(tracer.clone())
}

/// Sends what is left, for a moment. To be called from a thread that may block.
pub fn finish() {
    if let Some((provider, _)) = STARTED.get() {
        // Whoever is not there does not hold up the end.
        let _ = provider.shutdown_with_timeout(EXPORT_TIMEOUT);
    }
}

/// Whether traces are sent.
pub fn is_on() -> bool {
    STARTED.get().is_some()
}

/// A span elsewhere, as `traceparent` names it.
#[derive(Clone, Debug, PartialEq)]
pub struct Remote(SpanContext);

impl Remote {
    /// Reads `00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01`; `None` for anything that is not that.
    pub fn parse(traceparent: &[u8]) -> Option<Remote> {
        let text = std::str::from_utf8(traceparent).ok()?;
        let mut parts = text.trim().split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_lower_hex = |part: &str, length: usize| {
            part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        // Later versions may say more; version ff is none, and 00 says no more than this.
        let is_known =
            is_lower_hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
        if !is_known || !is_lower_hex(trace, 32) || !is_lower_hex(span, 16) || !is_lower_hex(flags, 2) {
            return None;
        }
        let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()? & 1);
        let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
        let context = SpanContext::new(trace, span, flags, true, TraceState::default());
        context.is_valid().then_some(Remote(context))
    }
}

/// Makes a request's span part of the trace that `remote` names, and writes the trace's id and the span's kind in its fields `trace_id` and
/// `otel.kind`, if it has any.
pub fn adopt(span: &Span, remote: Option<Remote>) {
    if !is_on() {
        if let Some(Remote(remote)) = remote {
            span.record("trace_id", remote.trace_id().to_string());
        }
        return;
    }
    if let Some(Remote(remote)) = remote {
        // It has not begun yet.
        let _ = span.set_parent(Context::new().with_remote_span_context(remote));
    }
    span.record("otel.kind", "server");
    let context = span.context();
    let trace = context.span().span_context().trace_id();
    if trace != TraceId::INVALID {
        span.record("trace_id", trace.to_string());
    }
}

/// What a record is to carry as `traceparent`, so that what becomes of it belongs to the present span. `None` while traces are off.
pub fn traceparent() -> Option<String> {
    if !is_on() {
        return None;
    }
    let context = Span::current().context();
    let span = context.span().span_context().clone();
    span.is_valid()
        .then(|| format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8()))
}

/// Work on a batch of records, some of which belong to traces.
pub struct Work(Option<SystemTime>);

impl Work {
    /// It begins now.
    pub fn begin() -> Work {
        Work(is_on().then(SystemTime::now))
    }

    /// It is done: each of the traces gets a span `name` of it, with where its record stood: topic, partition, offset.
    pub fn end<'a>(
        self,
        name: &'static str,
        records: impl Iterator<Item = (&'a str, &'static str, i32, i64)>,
    ) {
        let (Some(begun), Some((_, tracer))) = (self.0, STARTED.get()) else { return };
        for (traceparent, topic, partition, offset) in records {
            let Some(Remote(remote)) = Remote::parse(traceparent.as_bytes()) else { continue };
            let parent = Context::new().with_remote_span_context(remote);
            let place = vec![
                KeyValue::new("messaging.system", "kafka"),
                KeyValue::new("messaging.destination.name", topic),
                KeyValue::new("messaging.destination.partition.id", partition.to_string()),
                KeyValue::new("messaging.kafka.offset", offset),
            ];
            let span = tracer.span_builder(name).with_kind(SpanKind::Consumer).with_start_time(begun);
            span.with_attributes(place).start_with_context(tracer, &parent).end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_names_a_span_is_taken() {
        let taken = |text: &str| Remote::parse(text.as_bytes());
        let whole = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let remote = taken(whole).expect("valid").0;
        assert_eq!(remote.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(remote.span_id().to_string(), "b7ad6b7169203331");
        assert!(remote.is_sampled() && remote.is_remote());
        assert!(taken("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more").is_some());
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0é",
        ] {
            assert_eq!(taken(bad), None, "{bad}");
        }
    }

    #[test]
    fn while_it_is_off_nothing_is_handed_on() {
        assert!(!is_on());
        assert_eq!(traceparent(), None);
        Work::begin().end("place", std::iter::once(("", "mail.events", 0, 0)));
        finish();
    }
}
