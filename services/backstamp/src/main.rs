//! Backstamp.
fn main() {}
