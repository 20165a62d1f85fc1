//! x
pub struct EmbeddedLog;
