//! The command line as clap reads it: which commands there are, and the flags of all of them.

use std::error::Error as _;

use clap::error::{ContextKind, ErrorKind};
use clap::{Parser, Subcommand};
use varve::error::Result;
use varve::settings::SharedArguments;

use crate::commands::{
    Command as _, attach, check, clean, create, destroy, detach, diff, dump, export, extend, fork, hydrate, import,
    keys, list, purge, rescue, restore, show, snapshots, status, sweep, sync, tokens, torture, undelete, update, usage,
    warm,
};
use crate::context::Context;
use crate::render::Report;

/// The whole of it.
#[derive(Debug, Parser)]
#[command(
    name = "varve",
    version,
    about = "Creates, lists, shows, attaches, checks and destroys volumes",
    propagate_version = true
)]
#[command(after_help = "Volumes are named by id (vol_...) or by name, where only one has it.")]
pub struct CommandLine {
    #[command(flatten)]
    pub shared: SharedArguments,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: MainCommand,
}

/// Makes a group of commands, and the way to them: one line a command or a group within.
macro_rules! commands {
    ($(#[$meta:meta])* $group:ident { $($(#[$member_meta:meta])* $member:ident($arguments:ty),)* }) => {
        $(#[$meta])*
        #[derive(Debug, Subcommand)]
        pub enum $group {
            $($(#[$member_meta])* $member($arguments),)*
        }

        impl $group {
            /// Does it.
            ///
            /// # Errors
            /// Whatever the store and the daemon say.
            pub async fn report(self, context: &Context) -> Result<Report> {
                match self {
                    $($group::$member(inner) => inner.report(context).await,)*
                }
            }
        }
    };
}

commands! {
    /// All commands.
    MainCommand {
        /// Create, list, show, attach, detach, change and destroy volumes
        #[command(subcommand, visible_aliases = ["volume", "vol"])]
        Volumes(VolumesCommand),
        /// Make keys that volumes are encrypted with, and put others in their place
        #[command(subcommand, visible_alias = "key")]
        Keys(KeysCommand),
        /// Say who may ask a daemon over TCP
        #[command(subcommand, visible_alias = "token")]
        Tokens(TokensCommand),
        /// Look after the store as a whole
        #[command(subcommand)]
        Store(StoreCommand),
        /// Verify everything in the store that a volume refers to
        Check(check::Arguments),
        /// Print a manifest, checkpoint, segment or write log as a person can read it
        Dump(dump::Arguments),
        /// Show the daemon and what is attached to it
        Status(status::Arguments),
        /// Prove the promises on this store and this disk: kill, pause and wipe daemons of its own, in scratch space that is removed at the end
        Torture(torture::Arguments),
    }
}

commands! {
    /// What is done with volumes.
    VolumesCommand {
        /// Create a volume
        Create(create::Arguments),
        /// List volumes
        #[command(visible_alias = "ls")]
        List(list::Arguments),
        /// Show a volume
        Show(show::Arguments),
        /// Destroy volumes; they can be brought back for a while
        Destroy(destroy::Arguments),
        /// Bring a destroyed volume back
        Undelete(undelete::Arguments),
        /// Remove for good what was destroyed more than 24 hours ago; a daemon does it by itself
        Purge(purge::Arguments),
        /// Get the data out of a write log that was kept aside
        Rescue(rescue::Arguments),
        /// Attach a volume to the daemon
        Attach(attach::Arguments),
        /// Upload what is left and hand a volume back
        Detach(detach::Arguments),
        /// Wait until everything written so far is in the store
        Sync(sync::Arguments),
        /// Free the space in the store that nothing needs any more; the daemon does it by itself when there is enough of it
        Clean(clean::Arguments),
        /// Make a fork independent of its origin: copy what it has of that, in the background
        Hydrate(hydrate::Arguments),
        /// Bring a volume's content into the daemon's cache, as far as there is room for it
        Warm(warm::Arguments),
        /// Change a volume's durability, or when its snapshots are taken
        Update(update::Arguments),
        /// Tell what volumes and their snapshots take in the store, and what of that they share
        Usage(usage::Arguments),
        /// Make a volume larger, also while it is in use
        Extend(extend::Arguments),
        /// Make volumes that begin with the content of another
        Fork(fork::Arguments),
        /// Take, list, show and destroy snapshots
        #[command(subcommand, visible_alias = "snapshot")]
        Snapshots(SnapshotsCommand),
        /// Bring a volume back to one of its snapshots; its present is kept as a snapshot
        Restore(restore::Arguments),
        /// Make a volume of a raw disk image
        Import(import::Arguments),
        /// Write a volume or a snapshot into a raw disk image
        Export(export::Arguments),
        /// Show where one volume or snapshot may differ from another
        Diff(diff::Arguments),
    }
}

commands! {
    /// What is done with keys.
    KeysCommand {
        /// Make a random key in a new file
        Create(keys::create::Arguments),
        /// Wrap the keys of a volume with another key, passphrase or command; its data stays as it is
        Rotate(keys::rotate::Arguments),
    }
}

commands! {
    /// What is done with the file of tokens that a daemon reads.
    TokensCommand {
        /// Make a token, and print it: it is kept nowhere else
        Create(tokens::create::Arguments),
        /// List who has one
        List(tokens::list::Arguments),
        /// Take one away; no restart of the daemon is needed
        Revoke(tokens::revoke::Arguments),
    }
}

commands! {
    /// What is done with the store as a whole.
    StoreCommand {
        /// Remove what nothing refers to: leftovers of crashes and of destroyed volumes, older than an hour or a day; safe beside running daemons
        Sweep(sweep::Arguments),
    }
}

commands! {
    /// What is done with snapshots.
    SnapshotsCommand {
        /// Take a snapshot of a volume, also while it is in use
        Create(snapshots::create::Arguments),
        /// List the snapshots of a volume
        #[command(visible_alias = "ls")]
        List(snapshots::list::Arguments),
        /// Show a snapshot
        Show(snapshots::show::Arguments),
        /// Destroy snapshots; volumes that were made from them keep their content
        Destroy(snapshots::destroy::Arguments),
    }
}

/// What is wrong with a command line. Where one of our own parsers refused a value, it has said all there is to say, and the value is
/// not repeated as it came: it may be long, or steer the terminal.
pub fn explained(error: &clap::Error) -> String {
    if let (ErrorKind::ValueValidation, Some(reason)) = (error.kind(), error.source()) {
        let argument = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
        return match argument.split_once(' ').map_or(&*argument, |(flag, _)| flag) {
            flag if flag.starts_with('-') => format!("{flag}: {reason}"),
            _ => reason.to_string(),
        };
    }
    let text = error.render().to_string();
    text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned()
}
