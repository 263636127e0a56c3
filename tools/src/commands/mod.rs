//! One file a command: its raw arguments, the request they make once they are checked, what it does, and what it prints.

pub mod attach;
pub mod check;
pub mod create;
pub mod destroy;
pub mod detach;
pub mod dump;
pub mod list;
pub mod show;
pub mod status;
pub mod sync;
pub mod undelete;
pub mod update;
