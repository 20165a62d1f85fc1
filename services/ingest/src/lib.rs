//! Log in, store out. [`place`] takes raw events as they come: decodes, filters, joins, and hands rows on by timeline. [`own`]
//! writes each timeline's rows and tallies. [`references`] keeps names.

pub mod own;
pub mod place;
pub mod references;
pub mod retry;
