//! What every HTTP surface shares.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`door`] | what stands before a route: key, permission, rate limit |
//! | [`keys`] | API keys, looked up and remembered for seconds |
//! | [`limit`] | the rate limit of an account |
//! | [`envelope`] | every error there is, and its two forms |
//! | [`mod@app`] | what is around all routes: request ids, metrics, compression, unknown paths |
//! | [`request_id`] | `X-Request-Id` |
//! | [`mod@serve`] | connections: their number, their time-outs, their end |

pub mod app;
pub mod door;
pub mod envelope;
pub mod keys;
pub mod limit;
mod measure;
pub mod request_id;
pub mod serve;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod wire;

use std::sync::Arc;

use timeline::Timestamp;

pub use app::app;
pub use door::{Access, Door, VisibleUntil};
pub use envelope::{Problem, Style};
pub use keys::Keys;
pub use limit::{Limiter, RateLimit};
pub use serve::serve;

/// What time it is. Only the program's outermost layer reads the real one.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;
