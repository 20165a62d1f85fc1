//! What every service tells about itself — [`metrics`], [`logs`], [`traces`], [`health`], what a check [finds](finding), and the [`ops`] routes
//! that show them —
//! and how it stops: [`shutdown`].

pub mod finding;
pub mod health;
pub mod logs;
pub mod metrics;
pub mod ops;
pub mod shutdown;
pub mod traces;
