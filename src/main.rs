//! varved
fn main() {}
