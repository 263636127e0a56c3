//! `varve keys`: the keys that volumes are encrypted with.

pub mod create;
pub mod rotate;
