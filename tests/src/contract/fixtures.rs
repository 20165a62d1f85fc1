//! The examples in `schemas/`, good and bad: see `schemas/README.md`.

use std::fs;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::noon;

/// One way to be bad.
#[derive(Debug)]
pub struct Bad {
    /// The file's name without `.json`.
    pub name: String,
    /// The code that the decoder gives.
    pub code: String,
    /// The field at fault, `purchase.order_uuid` for one inside another; `None` for the whole message.
    pub field: Option<String>,
    /// The message as it goes to Kafka, with its date as it stands in the file.
    pub message: Vec<u8>,
    /// The message as JSON, where it is.
    pub json: Option<Value>,
    /// References: the Kafka key.
    pub key: Option<String>,
    /// `foreign_account` only: the account of the API key.
    pub key_account: Option<String>,
    /// Whether only the decoder can tell.
    pub beyond_schema: bool,
}

/// The folder `schemas`.
#[must_use]
pub fn schemas() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("schemas")
}

/// The good examples of `events` or `references`, with their names, as they stand in their files.
#[must_use]
pub fn good(kind: &str) -> Vec<(String, Value)> {
    files(&schemas().join(kind).join("examples/good"))
}

/// The good events with their dates moved: the newest day is yesterday.
#[must_use]
pub fn recent_events() -> Vec<(String, Value)> {
    let newest_day = DateTime::parse_from_rfc3339("2026-11-21T00:00:00Z").expect("a time").to_utc();
    let moved = noon(1).date_naive() - newest_day.date_naive();
    let mut events = good("events");
    for (_, event) in &mut events {
        let occurred_at = event["occurred_at"].as_str().expect("a time");
        let (day, time) = occurred_at.split_at(10);
        let day: chrono::NaiveDate = day.parse().expect("a day");
        event["occurred_at"] = json!(format!("{}{time}", day + moved));
    }
    events
}

/// The bad examples of `events` or `references`.
#[must_use]
pub fn bad(kind: &str) -> Vec<Bad> {
    let files = files(&schemas().join(kind).join("examples/bad")).into_iter();
    files.map(|(name, file)| to_bad(name, &file)).collect()
}

fn to_bad(name: String, file: &Value) -> Bad {
    let text = |key: &str| file[key].as_str().map(str::to_owned);
    let message = if let Some(message) = file.get("message") {
        message.to_string().into_bytes()
    } else if let Some(message) = text("message_text") {
        message.into_bytes()
    } else if let Some(hex) = text("message_hex") {
        let digits: Vec<char> = hex.chars().collect();
        let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).expect("hex");
        digits.chunks(2).map(byte).collect()
    } else {
        let size = file["message_size"].as_u64().and_then(|size| usize::try_from(size).ok()).expect("a size");
        padded_event(size, Utc::now())
    };
    Bad {
        code: text("code").expect("a code"),
        field: text("field"),
        json: serde_json::from_slice(&message).ok(),
        message,
        key: text("key"),
        key_account: text("key_account"),
        beyond_schema: file["beyond_schema"] == json!(true),
        name,
    }
}

/// A good event of exactly `size` bytes.
#[must_use]
pub fn padded_event(size: usize, at: DateTime<Utc>) -> Vec<u8> {
    let padded = |padding: usize| {
        json!({
            "id": "evt_padded", "account_id": "acme", "type": "open", "occurred_at": super::exact(at),
            "contact_id": "123e4567-e89b-12d3-a456-426614174000", "campaign_id": "cmp_padded",
            "padding": "x".repeat(padding),
        })
        .to_string()
        .into_bytes()
    };
    padded(size - padded(0).len())
}

/// All JSON files of a folder by their names.
fn files(folder: &Path) -> Vec<(String, Value)> {
    let entries = fs::read_dir(folder).expect("the folder is there");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let text = fs::read(&path).expect("can be read");
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let json = serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
            (name, json)
        })
        .collect();
    files.sort_by(|(one, _), (other, _)| one.cmp(other));
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files
}
