//! Errors: what can be wrong with a request, and the two forms in which it is said.
//!
//! A handler answers a [`Problem`]; as a response it is a bare status that carries the problem along. The
//! [`Door`](crate::Door) of the route, or the [`app`](crate::app::app) around all routes, gives it the [`Style`] of
//! its family. What caused a problem is logged where the problem is made, and is never sent.

use std::borrow::Cow;
use std::fmt::Write as _;

use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use event_store::StoreError;
use serde::Serialize;
use serde::ser::SerializeMap;
use timeline::key::Permission;

/// In how many seconds a caller may try again when the store or the log is away.
pub const UNAVAILABLE_RETRY_S: u32 = 2;

/// How much of a caller's value a message shows, in characters.
const SHOWN_CHARS_MAX: usize = 100;

/// The form of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `{"error":{"code":"invalid_key","message":…}}`: the campaign event stream, the intake, and everything that has
    /// no form of its own.
    Campaign,
    /// `{"error":{"code":"UNAUTHENTICATED","message":…,"details":…}}`: the contact timeline.
    Contact,
}

/// What is wrong with a request, or with us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// No key, or one that is malformed, unknown, expired or revoked.
    Unauthenticated,
    /// The key has not this permission.
    Forbidden(Permission),
    /// The account used its limit up.
    RateLimited {
        /// In how many seconds it has requests again.
        retry_s: u32,
    },
    /// Parameters of the query are invalid: at least one.
    Invalid(Vec<Fault>),
    /// There is no such path.
    UnknownPath,
    /// The account has no such campaign.
    UnknownCampaign,
    /// The account has no such contact.
    UnknownContact,
    /// The path has not this method.
    MethodNotAllowed {
        /// The method.
        method: Method,
        /// The methods that it has.
        allow: &'static str,
    },
    /// The body came too slowly.
    BodyTimeout,
    /// The body broke off.
    BodyIncomplete,
    /// The body is too large.
    PayloadTooLarge {
        /// How large it may be, in bytes.
        bytes_max: usize,
    },
    /// The body's type or encoding is none that we read.
    UnsupportedMediaType,
    /// The store or the log is away, or there is no room just now.
    Unavailable,
    /// A mistake of ours.
    Internal,
}

/// What is wrong with one parameter of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The parameter.
    pub name: &'static str,
    /// What is wrong with it.
    pub what: FaultKind,
}

/// What can be wrong with a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Its value is none that it may have.
    Value(String),
    /// Its value is no event type of the campaign event stream.
    EventType(String),
    /// It is given more than once, with different values.
    Repeated,
}

impl From<StoreError> for Problem {
    /// The store's failure is logged here, and goes no further.
    fn from(error: StoreError) -> Problem {
        tracing::warn!(statement = error.statement, error = %error.chain(), "the store failed");
        Problem::Unavailable
    }
}

impl Problem {
    /// The answer's status, in `style`.
    pub fn status(&self, style: Style) -> StatusCode {
        match self {
            Problem::Unauthenticated => StatusCode::UNAUTHORIZED,
            Problem::Forbidden(_) => StatusCode::FORBIDDEN,
            Problem::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Problem::Invalid(_) => match style {
                Style::Campaign => StatusCode::BAD_REQUEST,
                Style::Contact => StatusCode::UNPROCESSABLE_ENTITY,
            },
            Problem::UnknownPath | Problem::UnknownCampaign | Problem::UnknownContact => {
                StatusCode::NOT_FOUND
            }
            Problem::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Problem::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Problem::BodyIncomplete => StatusCode::BAD_REQUEST,
            Problem::PayloadTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Problem::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Problem::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Problem::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The stable code, in `style`.
    pub fn code(&self, style: Style) -> &'static str {
        let (campaign, contact) = match self {
            Problem::Unauthenticated => ("invalid_key", "UNAUTHENTICATED"),
            Problem::Forbidden(_) => ("insufficient_permissions", "FORBIDDEN"),
            Problem::RateLimited { .. } => ("rate_limited", "RATE_LIMITED"),
            Problem::Invalid(faults) => match faults.first() {
                Some(Fault { what: FaultKind::EventType(_), .. }) => {
                    ("invalid_event_type", "VALIDATION_ERROR")
                }
                _ => ("invalid_parameter", "VALIDATION_ERROR"),
            },
            Problem::UnknownPath => ("not_found", "RESOURCE_NOT_FOUND"),
            Problem::UnknownCampaign => ("campaign_not_found", "RESOURCE_NOT_FOUND"),
            Problem::UnknownContact => ("contact_not_found", "RESOURCE_NOT_FOUND"),
            Problem::MethodNotAllowed { .. } => ("method_not_allowed", "METHOD_NOT_ALLOWED"),
            Problem::BodyTimeout => ("request_timeout", "REQUEST_TIMEOUT"),
            Problem::BodyIncomplete => ("incomplete_body", "INCOMPLETE_BODY"),
            Problem::PayloadTooLarge { .. } => ("payload_too_large", "PAYLOAD_TOO_LARGE"),
            Problem::UnsupportedMediaType => ("unsupported_media_type", "UNSUPPORTED_MEDIA_TYPE"),
            Problem::Unavailable => ("unavailable", "SERVICE_UNAVAILABLE"),
            Problem::Internal => ("internal_error", "INTERNAL_ERROR"),
        };
        match style {
            Style::Campaign => campaign,
            Style::Contact => contact,
        }
    }

    /// The same in words, in `style`.
    pub fn message(&self, style: Style) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Problem::Unauthenticated => "Invalid or expired API key",
            Problem::Forbidden(permission) => {
                return format!("Missing `{}` permission", permission.name()).into();
            }
            Problem::RateLimited { .. } => "Rate limit exceeded",
            Problem::Invalid(faults) => match faults.first() {
                Some(fault) => return fault.message(style).into(),
                None => "Invalid query",
            },
            Problem::UnknownPath => "No such path",
            Problem::UnknownCampaign => "No campaign with this ID",
            Problem::UnknownContact => "Contact not found",
            Problem::MethodNotAllowed { method, .. } => {
                return format!("This path does not have the method {}", shown(method.as_str())).into();
            }
            Problem::BodyTimeout => "The body came too slowly",
            Problem::BodyIncomplete => "The body broke off",
            Problem::PayloadTooLarge { bytes_max } => {
                return format!("The body is over {} MiB", bytes_max >> 20).into();
            }
            Problem::UnsupportedMediaType => "Send application/json or application/x-ndjson, not compressed",
            Problem::Unavailable => "Temporarily unavailable",
            Problem::Internal => "Something went wrong on our side",
        })
    }

    /// The answer, in `style`.
    pub fn render(&self, style: Style) -> Response {
        let body = Envelope { error: ErrorBody { problem: self, style } };
        let mut response = (self.status(style), axum::Json(body)).into_response();
        let headers = response.headers_mut();
        match self {
            Problem::Unauthenticated => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Problem::MethodNotAllowed { allow, .. } => {
                headers.insert(header::ALLOW, HeaderValue::from_static(allow));
            }
            Problem::RateLimited { retry_s } => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(*retry_s));
            }
            Problem::Unavailable => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(UNAVAILABLE_RETRY_S));
            }
            _ => {}
        }
        response
    }
}

impl Fault {
    fn message(&self, style: Style) -> String {
        let noun = match style {
            Style::Campaign => "parameter",
            Style::Contact => "filter",
        };
        match &self.what {
            FaultKind::Value(value) => format!("Invalid value '{}' for {noun} '{}'", shown(value), self.name),
            FaultKind::EventType(value) => format!("Unrecognized event type '{}'", shown(value)),
            FaultKind::Repeated => format!("Several values for {noun} '{}'", self.name),
        }
    }
}

impl IntoResponse for Problem {
    /// A bare status with the problem in the extensions: see [`style`].
    fn into_response(self) -> Response {
        let mut response = self.status(Style::Campaign).into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// `response`, or the problem that it carries in `style`; headers that it has already stay.
pub fn style(style: Style, mut response: Response) -> Response {
    let Some(problem) = response.extensions_mut().remove::<Problem>() else { return response };
    let mut rendered = problem.render(style);
    rendered.headers_mut().extend(std::mem::take(response.headers_mut()));
    rendered
}

/// The beginning of a caller's text, without what a terminal or a page would not show.
fn shown(text: &str) -> String {
    let mut shown = String::new();
    for character in text.chars().take(SHOWN_CHARS_MAX) {
        if character.is_control() {
            // Writing to a string cannot fail.
            let _ = write!(shown, "{}", character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: ErrorBody<'a>,
}

struct ErrorBody<'a> {
    problem: &'a Problem,
    style: Style,
}

impl Serialize for ErrorBody<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ErrorBody { problem, style } = *self;
        let mut fields = serializer.serialize_map(None)?;
        fields.serialize_entry("code", problem.code(style))?;
        fields.serialize_entry("message", &problem.message(style))?;
        if let (Style::Contact, Problem::Invalid(faults)) = (style, problem) {
            fields.serialize_entry("details", &Details(faults))?;
        }
        fields.end()
    }
}

/// `{"type":["Invalid value 'bogus' for filter 'type'"]}`: at most one message a parameter.
struct Details<'a>(&'a [Fault]);

impl Serialize for Details<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|fault| (fault.name, [fault.message(Style::Contact)])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn body(response: Response) -> String {
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.expect("a body");
        String::from_utf8(bytes.to_vec()).expect("text")
    }

    #[tokio::test]
    async fn a_validation_error_is_the_references_one() {
        let fault = Fault { name: "type", what: FaultKind::Value("bogus".into()) };
        let response = style(Style::Contact, Problem::Invalid(vec![fault]).into_response());
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        assert_eq!(
            body(response).await,
            r#"{"error":{"code":"VALIDATION_ERROR","message":"Invalid value 'bogus' for filter 'type'","details":{"type":["Invalid value 'bogus' for filter 'type'"]}}}"#
        );
    }

    #[tokio::test]
    async fn each_style_has_its_codes_and_headers() {
        let keys = Permission::ContactsRead;
        for (problem, status, campaign, contact, name, value) in [
            (Problem::Unauthenticated, 401, "invalid_key", "UNAUTHENTICATED", "www-authenticate", "Bearer"),
            (Problem::Forbidden(keys), 403, "insufficient_permissions", "FORBIDDEN", "content-length", ""),
            (Problem::RateLimited { retry_s: 7 }, 429, "rate_limited", "RATE_LIMITED", "retry-after", "7"),
            (Problem::UnknownCampaign, 404, "campaign_not_found", "RESOURCE_NOT_FOUND", "", ""),
            (Problem::UnknownContact, 404, "contact_not_found", "RESOURCE_NOT_FOUND", "", ""),
            (Problem::Unavailable, 503, "unavailable", "SERVICE_UNAVAILABLE", "retry-after", "2"),
        ] {
            for (in_style, code) in [(Style::Campaign, campaign), (Style::Contact, contact)] {
                let response = style(in_style, problem.clone().into_response());
                assert_eq!(response.status(), status, "{problem:?}");
                if !value.is_empty() {
                    assert_eq!(response.headers()[name], value, "{problem:?}");
                }
                let message = problem.message(in_style);
                let expected = format!(r#"{{"error":{{"code":"{code}","message":"{message}"}}}}"#);
                assert_eq!(body(response).await, expected);
            }
        }
    }

    #[test]
    fn a_callers_text_is_cut_and_tamed() {
        assert_eq!(shown("a\n\u{1b}b"), "a\\n\\u{1b}b");
        assert_eq!(shown(&"ä".repeat(500)).chars().count(), SHOWN_CHARS_MAX);
    }
}
