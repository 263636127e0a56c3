//! varve
fn main() {}
