//! Events as their senders write them: one JSON object each.

use uuid::fmt::Hyphenated;

use super::{Event, Kind, Mix};

const DAY_S: i64 = 24 * 3600;

const USER_AGENTS: [&str; 8] = [
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_3 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/134.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko)",
    "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)",
    "Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/134.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Thunderbird/140.0",
    "Microsoft Office/16.0 (Windows NT 10.0; Microsoft Outlook 16.0.18526; Pro)",
    "YahooMailProxy; https://help.yahoo.com/kb/yahoo-mail-proxy-SLN28749.html",
];
const COUNTRIES: [&str; 12] = ["DE", "US", "FR", "GB", "NL", "PL", "ES", "IT", "AT", "CH", "SE", "BR"];
const REASONS: [(&str, &str); 4] = [
    ("hard", "550 5.1.1 The email account that you tried to reach does not exist"),
    ("hard", "550 5.7.1 Message rejected due to the recipient's policy"),
    ("soft", "452 4.2.2 The recipient's inbox is out of storage space"),
    ("soft", "421 4.7.0 Try again later, closing connection"),
];

/// Writes the events of a mix. It keeps the text of the day that it wrote last.
pub(crate) struct Writer<'a> {
    mix: &'a Mix,
    day: i64,
    day_text: String,
}

impl<'a> Writer<'a> {
    /// Writes the events of `mix`.
    pub(crate) fn new(mix: &'a Mix) -> Writer<'a> {
        Writer { mix, day: i64::MIN, day_text: String::new() }
    }

    /// Adds `event` to `out`, without a line's end.
    pub(crate) fn write(&mut self, event: &Event, out: &mut Vec<u8>) {
        let mut number = itoa::Buffer::new();
        let mut add = |out: &mut Vec<u8>, number_shown: u32| {
            out.extend_from_slice(number.format(number_shown).as_bytes());
        };
        out.extend_from_slice(br#"{"id":"evt_"#);
        write_hex(event.id, out);
        if let Some(account) = &self.mix.account {
            write_parts(&[r#"","account_id":""#, account], out);
        }
        out.extend_from_slice(br#"","type":""#);
        out.extend_from_slice(raw_name(event.kind).as_bytes());
        out.extend_from_slice(br#"","occurred_at":""#);
        self.write_time(event.at_ms, out);
        out.extend_from_slice(br#"","contact_id":""#);
        let mut uuid = [0; Hyphenated::LENGTH];
        let contact = self.mix.contact_id(event.contact);
        out.extend_from_slice(contact.hyphenated().encode_lower(&mut uuid).as_bytes());
        out.extend_from_slice(br#"","email":"reader"#);
        add(out, event.contact);
        out.extend_from_slice(br#"@example.com","campaign_id":""#);
        out.extend_from_slice(self.mix.name.as_bytes());
        out.push(b'_');
        add(out, event.campaign);
        out.extend_from_slice(br#"","step_id":"step_1""#);
        write_more(event, out);
        out.push(b'}');
    }

    /// `2026-04-17T14:23:05.123Z`
    fn write_time(&mut self, at_ms: i64, out: &mut Vec<u8>) {
        let (at_s, ms) = (at_ms.div_euclid(1000), at_ms.rem_euclid(1000));
        let (day, second) = (at_s.div_euclid(DAY_S), at_s.rem_euclid(DAY_S));
        if self.day != day {
            let date = chrono::DateTime::from_timestamp(day * DAY_S, 0).unwrap_or_default();
            (self.day, self.day_text) = (day, date.format("%Y-%m-%dT").to_string());
        }
        let digit = |number: i64| b'0' + (number % 10) as u8;
        let (hours, minutes, seconds) = (second / 3600, second / 60 % 60, second % 60);
        out.extend_from_slice(self.day_text.as_bytes());
        out.extend_from_slice(&[
            digit(hours / 10),
            digit(hours),
            b':',
            digit(minutes / 10),
            digit(minutes),
            b':',
            digit(seconds / 10),
            digit(seconds),
            b'.',
            digit(ms / 100),
            digit(ms / 10),
            digit(ms),
            b'Z',
        ]);
    }
}

impl Mix {
    /// How many bytes its distinct events are.
    pub(crate) fn json_bytes(&self) -> u64 {
        let (mut writer, mut text, mut bytes) = (Writer::new(self), Vec::new(), 0);
        for number in 0..self.count() {
            text.clear();
            writer.write(&self.event(number), &mut text);
            bytes += text.len() as u64;
        }
        bytes
    }
}

/// As a sender names it.
fn raw_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Sent => "send",
        Kind::Delivered => "delivery",
        Kind::Opened => "open",
        Kind::Clicked => "click",
        Kind::Replied => "reply",
        Kind::Bounced => "bounce",
        Kind::Unsubscribed => "unsubscribe",
        Kind::Complained => "complaint",
    }
}

/// What else an event of its kind carries.
fn write_more(event: &Event, out: &mut Vec<u8>) {
    let agent = USER_AGENTS[(event.words % 8) as usize];
    let country = COUNTRIES[(event.words >> 8) as usize % COUNTRIES.len()];
    let parts: &[&str] = match event.kind {
        Kind::Opened => &[r#","metadata":{"user_agent":""#, agent, r#"","ip_country":""#, country, r#""}"#],
        Kind::Clicked => {
            let product = char::from(b'a' + (event.words >> 16) as u8 % 26);
            let mut text = [0; 4];
            return write_parts(
                &[
                    r#","url":"https://shop.example/products/"#,
                    product.encode_utf8(&mut text),
                    r#"?utm_source=newsletter&utm_medium=email","metadata":{"user_agent":""#,
                    agent,
                    r#"","ip_country":""#,
                    country,
                    r#""}"#,
                ],
                out,
            );
        }
        Kind::Bounced => {
            let (kind, reason) = REASONS[(event.words >> 16) as usize % REASONS.len()];
            &[r#","bounce":{"type":""#, kind, r#"","reason":""#, reason, r#""}"#]
        }
        Kind::Sent | Kind::Delivered | Kind::Replied | Kind::Unsubscribed | Kind::Complained => &[],
    };
    write_parts(parts, out);
}

fn write_parts(parts: &[&str], out: &mut Vec<u8>) {
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}

fn write_hex(number: u64, out: &mut Vec<u8>) {
    for byte in number.to_be_bytes() {
        out.extend_from_slice(&[
            b"0123456789abcdef"[usize::from(byte >> 4)],
            b"0123456789abcdef"[usize::from(byte & 15)],
        ]);
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, SecondsFormat};
    use serde_json::Value;

    use super::*;
    use crate::mix::Shape;

    #[test]
    fn what_is_written_is_the_event() {
        let mix = Mix::new(Shape::Mixed, "cmp", 3000, 1_790_000_000_000, 1);
        let mut writer = Writer::new(&mix);
        for number in 0..mix.count() {
            let event = mix.event(number);
            let mut text = Vec::new();
            writer.write(&event, &mut text);
            let json: Value = serde_json::from_slice(&text).expect("json");
            let at = DateTime::from_timestamp_millis(event.at_ms).expect("a time");
            assert_eq!(json["occurred_at"], at.to_rfc3339_opts(SecondsFormat::Millis, true));
            assert_eq!(json["id"], event.shown_id());
            assert_eq!(json["campaign_id"], mix.campaign_id(event.campaign));
            assert_eq!(json["contact_id"], mix.contact_id(event.contact).to_string());
            assert_eq!(json["type"], raw_name(event.kind));
        }
    }

    #[test]
    fn what_a_kind_carries() {
        let mix = Mix::new(Shape::Giant, "cmp", 3000, 1_790_000_000_000, 1);
        let mut writer = Writer::new(&mix);
        let mut one_of = |kind| {
            let event = (0..3000).map(|number| mix.event(number)).find(|event| event.kind == kind);
            let mut text = Vec::new();
            writer.write(&event.expect("one"), &mut text);
            serde_json::from_slice::<Value>(&text).expect("json")
        };
        let url = one_of(Kind::Clicked)["url"].as_str().expect("text").to_owned();
        assert!(url.starts_with("https://shop.example/products/"), "{url}");
        assert!(one_of(Kind::Opened)["metadata"]["user_agent"].is_string());
        assert!(one_of(Kind::Bounced)["bounce"]["reason"].is_string());
    }
}
