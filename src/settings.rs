//! Settings of both binaries.
