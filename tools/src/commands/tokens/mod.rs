//! `varve tokens`: the tokens that open the control door of a daemon over TCP.

pub mod create;
pub mod list;
pub mod revoke;
