//! The rate limit: so many requests of an account in a window of time that begins with its first request. Counted per
//! process.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::HeaderMap;
use axum::http::HeaderValue;
use lru::LruCache;
use timeline::{AccountId, Timestamp};

use crate::Clock;

/// How many accounts a limiter keeps in mind. With more of them active in one window, the one that asked least recently
/// begins anew.
pub const ACCOUNTS_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");

/// `X-RateLimit-Limit`
pub const LIMIT: &str = "x-ratelimit-limit";
/// `X-RateLimit-Remaining`
pub const REMAINING: &str = "x-ratelimit-remaining";
/// `X-RateLimit-Reset`, in seconds from now
pub const RESET: &str = "x-ratelimit-reset";

/// How many requests in how long; or any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateLimit {
    /// No limit.
    Off,
    /// A limit.
    Requests {
        /// How many, at least one.
        count: u32,
        /// In how long.
        per: Per,
    },
}

/// The window of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are what they say")]
pub enum Per {
    Second,
    Minute,
    Hour,
}

impl RateLimit {
    /// Reads `1000/min`, `20/s`, `5000/h` or `off`; the error says what was expected.
    pub fn parse(text: &str) -> Result<RateLimit, String> {
        let wrong =
            || format!("rate limit '{text}': expected off, or a number and /s, /min or /h, such as 1000/min");
        if text == "off" {
            return Ok(RateLimit::Off);
        }
        let (count, per) = text.split_once('/').ok_or_else(wrong)?;
        let per = match per {
            "s" => Per::Second,
            "min" => Per::Minute,
            "h" => Per::Hour,
            _ => return Err(wrong()),
        };
        let digits_only = count.bytes().all(|byte| byte.is_ascii_digit());
        match count.parse() {
            Ok(count @ 1..) if digits_only => Ok(RateLimit::Requests { count, per }),
            _ => Err(wrong()),
        }
    }
}

impl std::str::FromStr for RateLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<RateLimit, String> {
        RateLimit::parse(text)
    }
}

impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, per) = match self {
            RateLimit::Off => return f.write_str("off"),
            RateLimit::Requests { count, per } => (count, per),
        };
        let per = match per {
            Per::Second => "s",
            Per::Minute => "min",
            Per::Hour => "h",
        };
        write!(f, "{count}/{per}")
    }
}

impl Per {
    fn ms(self) -> i64 {
        match self {
            Per::Second => 1000,
            Per::Minute => 60_000,
            Per::Hour => 3_600_000,
        }
    }
}

/// Counts requests. Clones count together.
#[derive(Clone)]
pub struct Limiter(Option<Arc<Counting>>);

struct Counting {
    count: u32,
    window_ms: i64,
    clock: Clock,
    windows: Mutex<LruCache<AccountId, Window>>,
}

#[derive(Clone, Copy)]
struct Window {
    start: Timestamp,
    used: u32,
}

/// How an account stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How many requests a window has.
    pub limit: u32,
    /// How many are left of it.
    pub remaining: u32,
    /// In how many seconds they are all back: at least 1.
    pub reset_s: u32,
}

impl Limiter {
    /// A limiter that has counted nothing.
    pub fn new(limit: RateLimit, clock: Clock) -> Limiter {
        Limiter(match limit {
            RateLimit::Off => None,
            RateLimit::Requests { count, per } => Some(Arc::new(Counting {
                count,
                window_ms: per.ms(),
                clock,
                windows: Mutex::new(LruCache::new(ACCOUNTS_MAX)),
            })),
        })
    }

    /// Counts a request of `account`. `Err` where it is one too many; `None` where there is no limit.
    pub fn count(&self, account: &AccountId) -> Result<Option<Standing>, Standing> {
        let Some(counting) = &self.0 else { return Ok(None) };
        let now = (counting.clock)();
        let mut windows = counting.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let window = match windows.get_mut(account) {
            Some(window) if counting.is_open(window, now) => window,
            _ => {
                windows.put(account.clone(), Window { start: now, used: 0 });
                windows.get_mut(account).expect("it was just put there")
            }
        };
        if window.used >= counting.count {
            return Err(counting.standing(Some(*window), now));
        }
        window.used += 1;
        Ok(Some(counting.standing(Some(*window), now)))
    }

    /// How `account` stands, or one that never asked. `None` where there is no limit.
    pub fn standing(&self, account: Option<&AccountId>) -> Option<Standing> {
        let counting = self.0.as_ref()?;
        let now = (counting.clock)();
        let windows = counting.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let window = account.and_then(|account| windows.peek(account)).copied();
        Some(counting.standing(window.filter(|window| counting.is_open(window, now)), now))
    }
}

impl Counting {
    /// A clock that was set back begins a new window.
    fn is_open(&self, window: &Window, now: Timestamp) -> bool {
        window.start <= now && now < window.start.plus_ms(self.window_ms)
    }

    fn standing(&self, window: Option<Window>, now: Timestamp) -> Standing {
        let used = window.map_or(0, |window| window.used);
        let end = window.map_or(now, |window| window.start).plus_ms(self.window_ms);
        let reset_s = (end.0 - now.0 + 999) / 1000;
        Standing {
            limit: self.count,
            remaining: self.count - used,
            reset_s: u32::try_from(reset_s).unwrap_or(u32::MAX).max(1),
        }
    }
}

impl Standing {
    /// Shows it in an answer's headers.
    pub fn show(self, headers: &mut HeaderMap) {
        headers.insert(LIMIT, HeaderValue::from(self.limit));
        headers.insert(REMAINING, HeaderValue::from(self.remaining));
        headers.insert(RESET, HeaderValue::from(self.reset_s));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    fn at(limit: &str) -> (Limiter, Arc<AtomicI64>) {
        let now = Arc::new(AtomicI64::new(1_000_000));
        let clock: Clock = {
            let now = now.clone();
            Arc::new(move || Timestamp(now.load(Ordering::SeqCst)))
        };
        (Limiter::new(RateLimit::parse(limit).expect("valid"), clock), now)
    }

    fn account(name: &str) -> AccountId {
        AccountId::parse(name).expect("valid")
    }

    #[test]
    fn limits_are_read_as_they_are_written() {
        for text in ["1000/min", "20/s", "5000/h", "off"] {
            assert_eq!(RateLimit::parse(text).expect(text).to_string(), text);
        }
        for bad in ["", "0/s", "-1/s", "+1/s", "1/d", "1", "off/s", "4294967296/s", "1 /s", "Off", "1/S"] {
            assert!(RateLimit::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_window_begins_with_the_first_request_and_ends_whole() {
        let (limiter, now) = at("2/min");
        let a = account("a");
        let standing = |remaining, reset_s| Standing { limit: 2, remaining, reset_s };
        assert_eq!(limiter.standing(Some(&a)), Some(standing(2, 60)));
        assert_eq!(limiter.count(&a), Ok(Some(standing(1, 60))));
        now.fetch_add(30_001, Ordering::SeqCst);
        assert_eq!(limiter.standing(Some(&a)), Some(standing(1, 30)));
        assert_eq!(limiter.count(&a), Ok(Some(standing(0, 30))));
        now.fetch_add(29_998, Ordering::SeqCst);
        assert_eq!(limiter.count(&a), Err(standing(0, 1)));
        assert_eq!(limiter.count(&account("b")), Ok(Some(standing(1, 60))));
        now.fetch_add(1, Ordering::SeqCst);
        assert_eq!(limiter.count(&a), Ok(Some(standing(1, 60))));
    }

    #[test]
    fn a_refused_request_is_not_counted_and_an_unknown_account_stands_fresh() {
        let (limiter, _) = at("1/s");
        let a = account("a");
        assert!(limiter.count(&a).is_ok());
        assert!(limiter.count(&a).is_err());
        assert_eq!(limiter.standing(None), Some(Standing { limit: 1, remaining: 1, reset_s: 1 }));
    }

    #[test]
    fn off_is_off() {
        let (limiter, _) = at("off");
        assert_eq!(limiter.count(&account("a")), Ok(None));
        assert_eq!(limiter.standing(None), None);
    }
}
