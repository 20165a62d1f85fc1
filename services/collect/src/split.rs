//! A body taken apart into records: one object, an array of them, or one a line (NDJSON). What each record is worth
//! is judged later; here only an array that is no JSON is refused, whole.

use std::fmt;

use axum::http::{HeaderMap, header};
use edge::Problem;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use timeline::Refusal;
use timeline::event::code;

use crate::{BODY_BYTES_MAX, REJECTED_MAX};

/// How many records of a body are told apart; those behind them are only read. A body has room for fewer that are any good, so of
/// more than this too many are rejected anyway.
const RECORDS_MAX: usize = 400_000;
/// The shortest record that is any good: `{"kind":"list","id":"l"}`, and what sets it apart from the next.
const RECORD_BYTES_MIN: usize = 25;
const _: () = assert!(RECORDS_MAX - BODY_BYTES_MAX / RECORD_BYTES_MIN > REJECTED_MAX);

/// How a body is to be taken apart, by its `Content-Type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// An object or an array.
    Json,
    /// One record a line.
    Lines,
    /// The type says nothing: whatever the body looks like. `curl -d` calls everything a form.
    Unsaid,
}

impl Form {
    /// The form of a request's body; an error where it is of a type or encoding that we do not read.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Form, Problem> {
        let is_plain = headers.get_all(header::CONTENT_ENCODING).iter().all(|encoding| {
            encoding.as_bytes().trim_ascii().is_empty()
                || encoding.as_bytes().eq_ignore_ascii_case(b"identity")
        });
        if !is_plain {
            return Err(Problem::UnsupportedMediaType);
        }
        let Some(media_type) = headers.get(header::CONTENT_TYPE) else { return Ok(Form::Unsaid) };
        let media_type = media_type.to_str().map_err(|_| Problem::UnsupportedMediaType)?;
        let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Ok(Form::Lines),
            "application/json" | "text/json" => Ok(Form::Json),
            "" | "application/octet-stream" | "application/x-www-form-urlencoded" => Ok(Form::Unsaid),
            other if other.starts_with("application/") && other.ends_with("+json") => Ok(Form::Json),
            _ => Err(Problem::UnsupportedMediaType),
        }
    }
}

/// The records of `body`, in their order, each as it came but for white space around it.
pub(crate) fn split(form: Form, body: &[u8]) -> Result<Vec<&[u8]>, Refusal> {
    let whole = trim(body);
    match (form, whole.first()) {
        (Form::Lines, _) => Ok(lines(body).take(RECORDS_MAX).collect()),
        (_, Some(b'[')) => split_array(whole),
        (Form::Unsaid, _) if is_lines(whole) => Ok(lines(body).take(RECORDS_MAX).collect()),
        (_, Some(_)) => Ok(vec![whole]),
        (_, None) => Err(malformed("the body is empty: expected an object, an array or lines of objects")),
    }
}

fn split_array(body: &[u8]) -> Result<Vec<&[u8]>, Refusal> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = json.deserialize_seq(Records).and_then(|records| json.end().map(|()| records));
    read.map_err(|error| malformed(format!("the body is not JSON: {error}; expected an array of objects")))
}

/// Takes an array apart.
struct Records;

impl<'de> Visitor<'de> for Records {
    type Value = Vec<&'de [u8]>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<&'de [u8]>, A::Error> {
        let mut records = Vec::new();
        while let Some(record) = items.next_element::<&'de RawValue>()? {
            if records.len() < RECORDS_MAX {
                records.push(record.get().as_bytes());
            }
        }
        Ok(records)
    }
}

/// Whether a body that does not say so has one record a line: its first line is a whole JSON value, and there are
/// more lines.
fn is_lines(body: &[u8]) -> bool {
    let mut lines = lines(body);
    let first = lines.next().is_some_and(|line| serde_json::from_slice::<&RawValue>(line).is_ok());
    first && lines.next().is_some()
}

/// The lines that are not empty.
fn lines(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    body.split(|byte| *byte == b'\n').map(trim).filter(|line| !line.is_empty())
}

/// `bytes` without the white space of JSON around it.
fn trim(bytes: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
    let start = bytes.iter().position(|byte| !is_space(byte)).unwrap_or(bytes.len());
    let end = bytes.iter().rposition(|byte| !is_space(byte)).map_or(start, |last| last + 1);
    &bytes[start..end]
}

fn malformed(message: impl Into<String>) -> Refusal {
    Refusal::new(code::MALFORMED_JSON, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(form: Form, body: &str) -> Result<Vec<String>, &'static str> {
        let text = |record: &[u8]| String::from_utf8(record.to_vec()).expect("text");
        split(form, body.as_bytes())
            .map(|records| records.into_iter().map(text).collect())
            .map_err(|refusal| refusal.code)
    }

    fn form(name: &'static str, value: &'static str) -> Result<Form, Problem> {
        Form::of(
            &[(name, value)]
                .into_iter()
                .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
                .collect(),
        )
    }

    #[test]
    fn a_body_is_an_object_an_array_or_lines() {
        for (form, body, expected) in [
            (Form::Json, " {\"a\": 1 }\n", vec!["{\"a\": 1 }"]),
            (Form::Json, "[{\"a\":1} ,\n 2]", vec!["{\"a\":1}", "2"]),
            (Form::Json, " [ ] ", vec![]),
            (Form::Json, "{}\n{}", vec!["{}\n{}"]),
            (Form::Lines, "{}\r\n\n  \n{\n[]", vec!["{}", "{", "[]"]),
            (Form::Lines, "", vec![]),
            (Form::Unsaid, "{\"a\":\n1}", vec!["{\"a\":\n1}"]),
            (Form::Unsaid, "{}\n{}\n", vec!["{}", "{}"]),
            (Form::Unsaid, "[1,\n2]", vec!["1", "2"]),
            (Form::Unsaid, "{}{}", vec!["{}{}"]),
            (Form::Unsaid, "a=1&b=2", vec!["a=1&b=2"]),
        ] {
            assert_eq!(records(form, body), Ok(expected.into_iter().map(str::to_owned).collect()), "{body}");
        }
    }

    #[test]
    fn more_records_than_can_be_good_are_read_and_not_told_apart() {
        let array = format!("[0{}]", ",0".repeat(RECORDS_MAX));
        assert_eq!(split(Form::Json, array.as_bytes()).expect("JSON").len(), RECORDS_MAX);
        assert!(split(Form::Json, array.replace("0]", "0,]").as_bytes()).is_err());
        assert!(split(Form::Json, format!("{array}]").as_bytes()).is_err());
        assert_eq!(
            split(Form::Lines, "0\n".repeat(RECORDS_MAX + 1).as_bytes()).expect("lines").len(),
            RECORDS_MAX
        );
    }

    #[test]
    fn what_cannot_be_read_at_all_is_malformed() {
        for (form, body) in
            [(Form::Json, ""), (Form::Unsaid, " \n"), (Form::Json, "[{}"), (Form::Json, "[] []")]
        {
            assert_eq!(records(form, body), Err(code::MALFORMED_JSON), "{body}");
        }
        assert!(split(Form::Json, b"[\"\xff\"]").is_err());
    }

    #[test]
    fn types_and_encodings_that_are_not_read() {
        assert_eq!(Form::of(&HeaderMap::new()), Ok(Form::Unsaid));
        for (value, expected) in [
            ("application/json; charset=utf-8", Form::Json),
            ("Application/JSON", Form::Json),
            ("application/cloudevents+json", Form::Json),
            ("application/x-ndjson", Form::Lines),
            ("application/octet-stream", Form::Unsaid),
            ("application/x-www-form-urlencoded", Form::Unsaid),
        ] {
            assert_eq!(form("content-type", value), Ok(expected), "{value}");
        }
        for value in ["text/plain", "multipart/form-data; boundary=x", "application/xml", "json"] {
            assert_eq!(form("content-type", value), Err(Problem::UnsupportedMediaType), "{value}");
        }
        assert_eq!(form("content-encoding", "identity"), Ok(Form::Unsaid));
        assert_eq!(form("content-encoding", "gzip"), Err(Problem::UnsupportedMediaType));
    }
}
