//! The parameters of a query, as forms write them: `name=value&…`, percent-encoded, `+` for a space.
//!
//! An unknown parameter is ignored, an empty one counts as absent, and one that has several different values is at
//! fault.

use edge::Problem;
use edge::envelope::{Fault, FaultKind};
use timeline::Timestamp;
use timeline::time::{DAY_MS, parse_date, parse_date_time};

/// The largest page, and the largest page size that is understood.
pub(crate) const NUMBER_MAX: u64 = 1 << 31;

/// Which page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Paging {
    /// Counted from 1.
    pub(crate) page: u64,
    /// Rows a page, at least 1.
    pub(crate) per_page: u64,
}

impl Paging {
    /// How many rows come before the page.
    pub(crate) fn offset(self) -> u64 {
        (self.page - 1) * self.per_page
    }

    /// How many rows the page has at most.
    pub(crate) fn limit(self) -> usize {
        usize::try_from(self.per_page).unwrap_or(usize::MAX)
    }
}

/// The parameters of one request, and what is wrong with those that were asked for.
pub(crate) struct Params {
    given: Vec<(String, Result<String, String>)>,
    faults: Vec<Fault>,
}

impl Params {
    /// The parameters of a URI's query.
    pub(crate) fn parse(query: Option<&str>) -> Params {
        let given = pairs(query.unwrap_or(""))
            // A name that is not Unicode is none of ours.
            .filter_map(|pair| Some((pair.name()?, pair.value())))
            .filter(|(_, value)| value.as_ref().map_or(true, |value| !value.is_empty()))
            .collect();
        Params { given, faults: Vec::new() }
    }

    /// What `read` makes of a parameter, if it is given; where that is `None`, the parameter is at fault.
    pub(crate) fn take<T>(&mut self, name: &'static str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        self.take_or(name, FaultKind::Value, read)
    }

    /// [`Params::take`], with a fault of one's own.
    pub(crate) fn take_or<T>(
        &mut self,
        name: &'static str,
        fault: impl Fn(String) -> FaultKind,
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let mut values = self.given.iter().filter(|(given, _)| given == name).map(|(_, value)| value);
        let first = values.next()?;
        let what = if values.any(|value| value != first) {
            FaultKind::Repeated
        } else {
            match first {
                Ok(value) => match read(value) {
                    Some(read) => return Some(read),
                    None => fault(value.clone()),
                },
                Err(shown) => fault(shown.clone()),
            }
        };
        self.faults.push(Fault { name, what });
        None
    }

    /// A number from 1 to `max`.
    pub(crate) fn take_number(&mut self, name: &'static str, max: u64) -> Option<u64> {
        self.take(name, |text| {
            let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|number| is_digits && (1..=max).contains(number))
        })
    }

    /// All is well, if it is.
    pub(crate) fn finish(self) -> Result<(), Problem> {
        if self.faults.is_empty() { Ok(()) } else { Err(Problem::Invalid(self.faults)) }
    }
}

/// The first instant at or after the one that `text` names: a lower bound. A bare date is its first instant.
pub(crate) fn parse_lower(text: &str) -> Option<Timestamp> {
    if let Some(day) = parse_date(text) {
        return Some(day);
    }
    let read = parse_date_time(&readable(text))?;
    Some(if read.cut { read.at.plus_ms(1) } else { read.at })
}

/// The last millisecond that `text` covers: an upper bound. A bare date is its last instant; a time without a
/// fraction is its whole second.
pub(crate) fn parse_upper(text: &str) -> Option<Timestamp> {
    if let Some(day) = parse_date(text) {
        return Some(day.plus_ms(DAY_MS - 1));
    }
    let read = parse_date_time(&readable(text))?;
    Some(if read.fraction { read.at } else { read.at.plus_ms(999) })
}

/// `text` as the parser wants it. A `+` that was not percent-encoded arrives as a space, and no time has a space. Of
/// a fraction's digits, which RFC 3339 does not limit, those after the ninth matter only by not being zero.
fn readable(text: &str) -> String {
    let mut text = text.replace(' ', "+");
    if let Some(point) = text.find('.') {
        let digits = text[point + 1..].bytes().take_while(u8::is_ascii_digit).count();
        let (ninth, end) = (point + 9, point + 1 + digits);
        if digits > 9 {
            let is_more = text[ninth..end].bytes().any(|digit| digit != b'0');
            text.replace_range(ninth..end, if is_more { "1" } else { "0" });
        }
    }
    text
}

/// One `name=value`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair<'a>(&'a str);

/// The pairs of a query, in their order.
pub(crate) fn pairs(query: &str) -> impl Iterator<Item = Pair<'_>> {
    query.split('&').filter(|pair| !pair.is_empty()).map(Pair)
}

impl<'a> Pair<'a> {
    /// The pair as it came.
    pub(crate) fn raw(self) -> &'a str {
        self.0
    }

    /// Its name; `None` where that is not UTF-8.
    pub(crate) fn name(self) -> Option<String> {
        decode(self.0.split_once('=').map_or(self.0, |(name, _)| name)).ok()
    }

    /// Its value; an error where that is not UTF-8, with what can be shown of it.
    fn value(self) -> Result<String, String> {
        decode(self.0.split_once('=').map_or("", |(_, value)| value))
    }
}

/// Decodes as forms do (WHATWG URL, section 5.1): a `%` that begins no escape stands for itself.
fn decode(text: &str) -> Result<String, String> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = text.as_bytes();
    let (mut decoded, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        match (bytes[at], digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
                continue;
            }
            (b'+', ..) => decoded.push(b' '),
            (byte, ..) => decoded.push(byte),
        }
        at += 1;
    }
    String::from_utf8(decoded).map_err(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn take(query: &str) -> Result<Option<String>, Problem> {
        let mut params = Params::parse(Some(query));
        let taken = params.take("a", |text| (text != "bad").then(|| text.to_owned()));
        params.finish().map(|()| taken)
    }

    fn fault(what: FaultKind) -> Problem {
        Problem::Invalid(vec![Fault { name: "a", what }])
    }

    #[test]
    fn one_value_however_often_and_none_if_empty() {
        for (query, value) in [
            ("", None),
            ("a=", None),
            ("a", None),
            ("b=1&c", None),
            ("a=1", Some("1")),
            ("a=1&a=1&%61=%31", Some("1")),
            ("a=&a=1&a", Some("1")),
            ("x=%ff&%ff=y&a=%e4%b8%ad+%2B&&", Some("中 +")),
            ("a=100%&b=%zz", Some("100%")),
            ("a=b=c", Some("b=c")),
        ] {
            assert_eq!(take(query), Ok(value.map(str::to_owned)), "{query}");
        }
    }

    #[test]
    fn faults_are_found() {
        assert_eq!(take("a=1&a=2"), Err(fault(FaultKind::Repeated)));
        assert_eq!(take("a=bad"), Err(fault(FaultKind::Value("bad".into()))));
        assert_eq!(take("a=%ff"), Err(fault(FaultKind::Value("\u{fffd}".into()))));
        assert_eq!(take("a=%ff&a=1"), Err(fault(FaultKind::Repeated)));
    }

    #[test]
    fn numbers_are_digits_within_bounds() {
        let number = |text: &str| Params::parse(Some(&format!("n={text}"))).take_number("n", NUMBER_MAX);
        assert_eq!(number("1"), Some(1));
        assert_eq!(number("007"), Some(7));
        assert_eq!(number("2147483648"), Some(NUMBER_MAX));
        for bad in
            ["0", "-1", "%2B1", "+1", "1.0", "1e3", "abc", "2147483649", "99999999999999999999999", "1%20"]
        {
            assert_eq!(number(bad), None, "{bad}");
        }
    }

    #[test]
    fn bounds_cover_what_they_say() {
        let day = parse_date("2026-04-17").expect("a date");
        let at = |hours: i64, ms: i64| Some(day.plus_ms(hours * 3_600_000 + ms));
        for (text, lower, upper) in [
            ("2026-04-17", at(0, 0), at(24, -1)),
            ("2026-04-17T10:00:00Z", at(10, 0), at(10, 999)),
            ("2026-04-17T10:00:00", at(10, 0), at(10, 999)),
            ("2026-04-17t10:00:00z", at(10, 0), at(10, 999)),
            ("2026-04-17T10:00:00 02:00", at(8, 0), at(8, 999)),
            ("2026-04-17T10:00:00+02:00", at(8, 0), at(8, 999)),
            ("2026-04-17T10:00:00-02:00", at(12, 0), at(12, 999)),
            ("2026-04-17T10:00:00.5Z", at(10, 500), at(10, 500)),
            ("2026-04-17T10:00:00.000Z", at(10, 0), at(10, 0)),
            ("2026-04-17T10:00:00.0005Z", at(10, 1), at(10, 0)),
            ("2026-04-17T10:00:00.123000000Z", at(10, 123), at(10, 123)),
            ("2026-04-17T10:00:00.999999999Z", at(10, 1000), at(10, 999)),
            ("2026-04-17T10:00:00.1230000000001Z", at(10, 124), at(10, 123)),
            ("2026-04-17T10:00:00.1230000000000 02:00", at(8, 123), at(8, 123)),
            ("2026-04-17 10:00:00Z", None, None),
            ("2026-04-31", None, None),
            ("2026-04-17T25:00:00Z", None, None),
            ("2026-04-17T10:00Z", None, None),
            ("1776420000", None, None),
            ("yesterday", None, None),
        ] {
            assert_eq!(parse_lower(text), lower, "{text}");
            assert_eq!(parse_upper(text), upper, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_query_panics(query in ".{0,60}") {
            let _ = take(&query);
            let _ = (parse_lower(&query), parse_upper(&query));
        }
    }
}
