//! Which clicks are list management — the one-click unsubscribe link, the preferences link — and so no engagement.
//!
//! A click says so itself (`link`), or its URL matches a configured pattern. Patterns are matched on parsed URLs
//! (WHATWG URL), part by part; a word somewhere in a URL never decides, since a post about unsubscribing is content.
//!
//! A pattern is `[account=]host/path[?name[=value]]`: the host exactly, or `*.` and a domain for every host below it; `*` in
//! the path is any text within a segment, a last segment `**` is everything below; a query parameter must be there, with that value.

use url::Url;

use crate::event::{Event, EventType, Link};
use crate::id::AccountId;

/// The configured patterns.
#[derive(Clone, Debug, Default)]
pub struct ListManagementFilter {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    account: Option<AccountId>,
    host: String,
    path: Vec<String>,
    query: Option<(String, Option<String>)>,
}

impl ListManagementFilter {
    /// Reads patterns set apart by commas or white space; the error says which is wrong and why.
    pub fn parse(text: &str) -> Result<ListManagementFilter, String> {
        let texts = text.split([',', ' ', '\n', '\t']).filter(|text| !text.is_empty());
        Ok(ListManagementFilter { patterns: texts.map(Pattern::parse).collect::<Result<_, _>>()? })
    }

    /// Whether `event` is a click on a list-management link.
    pub fn matches(&self, event: &Event) -> bool {
        if event.event_type != EventType::Clicked {
            return false;
        }
        if event.link != Link::Content {
            return true;
        }
        let mut ours = self
            .patterns
            .iter()
            .filter(|pattern| pattern.account.as_ref().is_none_or(|account| *account == event.account))
            .peekable();
        if ours.peek().is_none() {
            return false;
        }
        event
            .url
            .as_deref()
            .and_then(|url| Url::parse(url).ok())
            .is_some_and(|url| ours.any(|pattern| pattern.matches(&url)))
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Pattern, String> {
        let wrong = |why: &str| {
            format!("list-management pattern '{text}': {why}; expected [account=]host/path[?name[=value]]")
        };
        let (account, rest) = match text.split_once('=') {
            Some((account, rest)) if !account.contains(['/', '?']) => {
                (Some(AccountId::parse(account).ok_or_else(|| wrong("the account is no account id"))?), rest)
            }
            _ => (None, text),
        };
        let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
        let (host, path) = place.split_once('/').ok_or_else(|| wrong("it has no path"))?;
        if host.is_empty() || host.contains(':') || host.trim_start_matches("*.").contains('*') {
            return Err(wrong("the host is not a name, or *. and a domain"));
        }
        let query = query.map(|query| match query.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (query.to_owned(), None),
        });
        Ok(Pattern {
            account,
            host: host.to_ascii_lowercase(),
            path: path.split('/').map(str::to_owned).collect(),
            query,
        })
    }

    fn matches(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or("");
        let host_matches = match self.host.strip_prefix("*.") {
            Some(domain) => {
                host.strip_suffix(domain).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            None => host == self.host,
        };
        host_matches
            && self.path_matches(url)
            && self.query.as_ref().is_none_or(|(name, value)| {
                url.query_pairs().any(|(key, held)| {
                    key == name.as_str() && value.as_ref().is_none_or(|value| held == value.as_str())
                })
            })
    }

    fn path_matches(&self, url: &Url) -> bool {
        let segments: Vec<&str> = url.path().trim_start_matches('/').split('/').collect();
        let (fixed, below) = match self.path.split_last() {
            Some((last, fixed)) if last == "**" => (fixed, true),
            _ => (self.path.as_slice(), false),
        };
        (segments.len() == fixed.len() || (below && segments.len() > fixed.len()))
            && fixed.iter().zip(&segments).all(|(pattern, segment)| glob(pattern, segment))
    }
}

/// Whether `text` matches `pattern`, in which `*` is any text.
fn glob(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or("");
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let pieces: Vec<&str> = pieces.collect();
    let Some((last, middle)) = pieces.split_last() else { return rest.is_empty() };
    for piece in middle {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::decode_event;
    use crate::time::Timestamp;

    fn click(account: &str, url: &str, link: &str) -> Event {
        let json = format!(
            r#"{{"id":"e","account_id":"{account}","type":"click","occurred_at":"2026-04-17T14:23:05Z","message_id":"m","url":"{url}","link":"{link}"}}"#
        );
        decode_event(json.as_bytes(), Timestamp(1_790_000_000_000)).expect("valid")
    }

    #[test]
    fn the_link_field_decides_without_any_pattern() {
        let filter = ListManagementFilter::default();
        assert!(filter.matches(&click("a", "https://a.example/", "unsubscribe")));
        assert!(filter.matches(&click("a", "https://a.example/", "preferences")));
        assert!(!filter.matches(&click("a", "https://blog.example/how-to-unsubscribe", "content")));
    }

    #[test]
    fn patterns_match_parts_of_the_parsed_url() {
        let filter = ListManagementFilter::parse(
            "*.mail.example/u/*/off, acme=acme.example/prefs/** x.example/m?action=unsubscribe",
        )
        .expect("valid");
        for (account, url, hit) in [
            ("a", "https://click.mail.example/u/42/off", true),
            ("a", "https://click.mail.example:8443/u/42/off?x#y", true),
            ("a", "https://mail.example/u/42/off", false),
            ("a", "https://evilmail.example/u/42/off", false),
            ("a", "https://b.example/?to=click.mail.example/u/42/off", false),
            ("a", "https://click.mail.example/u/42/off/more", false),
            ("acme", "https://ACME.example/prefs/1/2", true),
            ("a", "https://acme.example/prefs/1/2", false),
            ("a", "https://x.example/m?a=b&action=unsubscribe", true),
            ("a", "https://x.example/m?action=read", false),
            ("a", "not a url", false),
        ] {
            assert_eq!(filter.matches(&click(account, url, "content")), hit, "{account} {url}");
        }
        assert!(ListManagementFilter::parse("nohost").is_err());
        assert!(ListManagementFilter::parse("a b=c.example/").is_err());
    }

    #[test]
    fn globs() {
        for (pattern, text, hit) in [
            ("a*c", "abc", true),
            ("a*c", "ab", false),
            ("*", "", true),
            ("a*b*c", "a1b2c", true),
            ("ab", "abc", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(glob(pattern, text), hit, "{pattern} {text}");
        }
    }
}
