//! Ids as senders write them: opaque text of a small alphabet, 1 to 64 characters. One that is a UUID
//! (RFC 9562, hyphenated) is kept in lower case, so that both spellings are one id.

use std::fmt;

/// The longest id, in characters.
pub const ID_CHARS_MAX: usize = 64;

/// A campaign's, automation's, list's, step's, message's or event's id: `[A-Za-z0-9_.:-]{1,64}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(Box<str>);

/// A tenant's id: `[A-Za-z0-9_.-]{1,64}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(Box<str>);

impl Id {
    /// What [`Id::parse`] accepts, for error messages.
    pub const EXPECTED: &'static str = "1 to 64 characters of A-Z a-z 0-9 _ . : -";

    /// The id in `text`, or `None` where it breaks the syntax.
    pub fn parse(text: &str) -> Option<Id> {
        parse_opaque(text, true).map(Id)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AccountId {
    /// What [`AccountId::parse`] accepts, for error messages.
    pub const EXPECTED: &'static str = "1 to 64 characters of A-Z a-z 0-9 _ . -";

    /// The account id in `text`, or `None` where it breaks the syntax.
    pub fn parse(text: &str) -> Option<AccountId> {
        parse_opaque(text, false).map(AccountId)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether `text` is a UUID as RFC 9562 writes it: 8-4-4-4-12 hexadecimal digits, either case.
pub fn is_uuid(text: &str) -> bool {
    parse_uuid(text).is_some()
}

/// A contact's id: a hyphenated UUID, or `None`.
pub fn parse_uuid(text: &str) -> Option<uuid::Uuid> {
    // Other lengths are other ways to write one: without hyphens, in braces, as a URN.
    if text.len() == 36 { uuid::Uuid::try_parse(text).ok() } else { None }
}

fn parse_opaque(text: &str, colon: bool) -> Option<Box<str>> {
    if text.is_empty() || text.len() > ID_CHARS_MAX {
        return None;
    }
    // Every byte is looked at whatever the ones before it are, so that the compiler takes many at once.
    let (mut allowed, mut upper) = (true, false);
    for byte in text.bytes() {
        let is_upper = byte.wrapping_sub(b'A') < 26;
        let lower_or_digit = (byte.wrapping_sub(b'a') < 26) | (byte.wrapping_sub(b'0') < 10);
        let mark = (byte == b'_') | (byte == b'.') | (byte == b'-') | (colon & (byte == b':'));
        allowed &= is_upper | lower_or_digit | mark;
        upper |= is_upper;
    }
    if !allowed {
        return None;
    }
    let mut id: Box<str> = text.into();
    if upper && is_uuid(text) {
        id.make_ascii_lowercase();
    }
    Some(id)
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_ids_are_one_in_either_case() {
        let upper = Id::parse("D5A66AE0-E974-4B1B-81EF-4F14C425550A");
        assert_eq!(upper, Id::parse("d5a66ae0-e974-4b1b-81ef-4f14c425550a"));
        assert_ne!(Id::parse("Cmp_A"), Id::parse("cmp_a"));
    }

    #[test]
    fn syntax_is_held() {
        for bad in ["", "a b", "ä", "a/b", &"x".repeat(65)] {
            assert_eq!(Id::parse(bad), None, "{bad}");
        }
        assert!(Id::parse("a:b").is_some());
        assert!(AccountId::parse("a:b").is_none());
        assert!(Id::parse(&"x".repeat(64)).is_some());
        assert!(parse_uuid("123e4567e89b12d3a456426614174000").is_none());
    }
}
