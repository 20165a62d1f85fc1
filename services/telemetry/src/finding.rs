//! What `backstamp check` finds: a line for each thing that was looked at.

use std::fmt;

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but not as well or as safely as promised; or it could not be looked at.
    Warning,
    /// It does not work, or breaks a promise.
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Error => "error",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How it is.
    pub level: Level,
    /// What it is: `kafka`, a topic's name, `scylla`, `clock` …
    pub about: String,
    /// What was found.
    pub found: String,
    /// How to mend it; empty where nothing is to be done.
    pub mend: String,
}

impl Finding {
    /// A thing that is as it should be.
    pub fn ok(about: impl Into<String>, found: impl Into<String>) -> Finding {
        Finding { level: Level::Ok, about: about.into(), found: found.into(), mend: String::new() }
    }

    /// A thing to know of.
    pub fn warning(about: impl Into<String>, found: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding { level: Level::Warning, about: about.into(), found: found.into(), mend: mend.into() }
    }

    /// A thing that must be mended.
    pub fn error(about: impl Into<String>, found: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding { level: Level::Error, about: about.into(), found: found.into(), mend: mend.into() }
    }
}
