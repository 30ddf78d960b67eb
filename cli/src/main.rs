//! Placeholder of the executable.
fn main() {}
