//! Instants: milliseconds since 1970-01-01T00:00:00Z, read from and shown as RFC 3339.

/// An instant, in milliseconds since the epoch (UTC, without leap seconds).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

/// Milliseconds in a day.
pub const DAY_MS: i64 = 86_400_000;

/// `2026-04-17T14:23:05.123Z`, the longest that is shown.
const SHOWN_BYTES: usize = 24;

impl Timestamp {
    /// `ms` milliseconds later.
    pub fn plus_ms(self, ms: i64) -> Timestamp {
        Timestamp(self.0.saturating_add(ms))
    }

    /// `ms` milliseconds earlier.
    pub fn minus_ms(self, ms: i64) -> Timestamp {
        Timestamp(self.0.saturating_sub(ms))
    }

    /// UTC, whole seconds (the fraction is cut, not rounded): `2026-04-17T14:23:05Z`.
    pub fn to_rfc3339(self) -> String {
        self.show(false)
    }

    /// UTC, with milliseconds: `2026-04-17T14:23:05.123Z`.
    pub fn to_rfc3339_ms(self) -> String {
        self.show(true)
    }

    fn show(self, with_ms: bool) -> String {
        let (days, ms) = (self.0.div_euclid(DAY_MS), self.0.rem_euclid(DAY_MS));
        let (year, month, day) = civil_from_days(days);
        let seconds = ms / 1000;
        let mut text = String::with_capacity(SHOWN_BYTES);
        // The machinery of format! takes four times as long, and this is done for every row of every page.
        let mut push = |before: &str, number: i64, digits: u32| {
            text.push_str(before);
            for place in (0..digits).rev() {
                text.push(char::from(b'0' + (number / 10_i64.pow(place) % 10) as u8));
            }
        };
        push("", year.max(0), year.max(1000).ilog10() + 1);
        push("-", month, 2);
        push("-", day, 2);
        push("T", seconds / 3600, 2);
        push(":", seconds / 60 % 60, 2);
        push(":", seconds % 60, 2);
        if with_ms {
            push(".", ms % 1000, 3);
        }
        text.push('Z');
        text
    }
}

/// An RFC 3339 date-time taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateTime {
    /// The instant, cut to the millisecond; read as UTC where the text has no zone.
    pub at: Timestamp,
    /// Whether the text has a zone.
    pub zoned: bool,
    /// Whether the text has a fraction of a second.
    pub fraction: bool,
    /// Whether something below a millisecond was cut off.
    pub cut: bool,
}

/// Reads `2026-04-17T14:23:05[.123456789](Z|+02:00|)`: RFC 3339 with up to nanoseconds, the zone optional.
/// `None` for anything else, days and hours that do not exist included.
pub fn parse_date_time(text: &str) -> Option<DateTime> {
    let bytes = text.as_bytes();
    let days = days_of(bytes.get(..10)?)?;
    if !matches!(bytes.get(10)?, b'T' | b't') {
        return None;
    }
    let clock = bytes.get(11..19)?;
    if clock[2] != b':' || clock[5] != b':' {
        return None;
    }
    let (hour, minute, second) = (number(&clock[..2])?, number(&clock[3..5])?, number(&clock[6..8])?);
    let mut rest = &bytes[19..];
    let (mut ms, mut fraction, mut cut) = (0, false, false);
    if let [b'.', digits @ ..] = rest {
        let count = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if !(1..=9).contains(&count) {
            return None;
        }
        for place in 0..3 {
            ms = ms * 10 + digits[..count].get(place).map_or(0, |digit| i64::from(digit - b'0'));
        }
        cut = digits[..count].iter().skip(3).any(|digit| *digit != b'0');
        fraction = true;
        rest = &digits[count..];
    }
    let offset_minutes = match rest {
        [] => None,
        [b'Z' | b'z'] => Some(0),
        [sign @ (b'+' | b'-'), zone @ ..] if zone.len() == 5 && zone[2] == b':' => {
            let (hours, minutes) = (number(&zone[..2])?, number(&zone[3..])?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            Some((hours * 60 + minutes) * if *sign == b'-' { -1 } else { 1 })
        }
        _ => return None,
    };
    let zoned = offset_minutes.is_some();
    let minutes = hour * 60 + minute - offset_minutes.unwrap_or(0);
    // A leap second is the last of a UTC day; it counts as the first of the next.
    let leap = second == 60 && minutes.rem_euclid(1440) == 1439;
    if hour > 23 || minute > 59 || (second > 59 && !leap) {
        return None;
    }
    let at = Timestamp(days * DAY_MS + minutes * 60_000 + second * 1000 + ms);
    Some(DateTime { at, zoned, fraction, cut })
}

/// The first instant of the calendar date `YYYY-MM-DD` in UTC; `None` where that is no real date.
pub fn parse_date(text: &str) -> Option<Timestamp> {
    (text.len() == 10).then(|| days_of(text.as_bytes()))?.map(|days| Timestamp(days * DAY_MS))
}

/// Days since the epoch of `YYYY-MM-DD`.
fn days_of(date: &[u8]) -> Option<i64> {
    if date[4] != b'-' || date[7] != b'-' {
        return None;
    }
    let (year, month, day) = (number(&date[..4])?, number(&date[5..7])?, number(&date[8..10])?);
    let is_real = (1..=12).contains(&month) && (1..=days_of_month(year, month)).contains(&day);
    is_real.then(|| days_from_civil(year, month, day))
}

fn days_of_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// The number that up to four digits write.
fn number(digits: &[u8]) -> Option<i64> {
    let mut number = 0;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number * 10 + u32::from(digit);
    }
    Some(number.into())
}

/// Days since the epoch of a date of the proleptic Gregorian calendar, counted in eras of 400 years from 1 March.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Option<i64> {
        parse_date_time(text).map(|read| read.at.0)
    }

    #[test]
    fn zones_and_fractions_are_read() {
        assert_eq!(at("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(at("2026-04-17T16:23:05.1239+02:00"), at("2026-04-17T14:23:05.123Z"));
        let read = parse_date_time("2026-04-17T14:23:05.000000001").expect("valid");
        assert_eq!((read.zoned, read.fraction, read.cut), (false, true, true));
        assert_eq!(at("2016-12-31T23:59:60Z"), at("2017-01-01T00:00:00Z"));
    }

    #[test]
    fn what_does_not_exist_is_refused() {
        for bad in [
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            "2026-01-01T12:00:60Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00.1234567890Z",
            "2026-01-01T00:00:00+24:00",
            "2026-01-01 00:00:00Z",
            "2026-01-01",
            "",
            "2026-01-01T00:00Z",
            "2026-01-01T00:00:00ZZ",
            "2026-01-01T00:00:00+0200",
            "2026-00-10T00:00:00Z",
        ] {
            assert_eq!(at(bad), None, "{bad}");
        }
        assert_eq!(parse_date("2026-02-30"), None);
        assert_eq!(parse_date("2026-2-3"), None);
        assert!(parse_date("2024-02-29").is_some());
    }

    proptest! {
        #[test]
        fn shown_and_read_back_is_the_same(seconds in -62_167_219_200_i64..253_402_300_800) {
            let shown = Timestamp(seconds * 1000 + 999).to_rfc3339();
            prop_assert_eq!(at(&shown), Some(seconds * 1000));
            prop_assert_eq!(at(&Timestamp(seconds * 1000 + 7).to_rfc3339_ms()), Some(seconds * 1000 + 7));
            let date = chrono::DateTime::from_timestamp(seconds, 0).expect("in range");
            prop_assert_eq!(shown, date.format("%Y-%m-%dT%H:%M:%SZ").to_string());
        }
    }
}
