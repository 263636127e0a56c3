//! What several test binaries share.

#![allow(dead_code, reason = "each test binary uses the part that it needs")]

pub mod minio;
