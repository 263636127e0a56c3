//! The command line as clap reads it: nothing is checked here that a [`commands`](crate::commands) file can check.

use clap::{Parser, Subcommand};
use varve::error::Result;
use varve::settings::SharedArguments;

use crate::backend::Backend;
use crate::commands::{attach, check, create, destroy, detach, dump, list, show, status, sync, undelete, update};
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
    pub command: Command,
}

/// Makes the raw commands, the checked requests, and the ways between them: one line a command.
macro_rules! commands {
    ($($(#[$meta:meta])* $name:ident => $module:ident,)*; $($(#[$volume_meta:meta])* $volume_name:ident => $volume_module:ident,)*) => {
        #[derive(Debug, Subcommand)]
        pub enum Command {
            /// Create, list, show, attach, detach, change and destroy volumes
            #[command(subcommand, visible_aliases = ["volume", "vol"])]
            Volumes(VolumesCommand),
            $($(#[$meta])* $name($module::Arguments),)*
        }

        #[derive(Debug, Subcommand)]
        pub enum VolumesCommand {
            $($(#[$volume_meta])* $volume_name($volume_module::Arguments),)*
        }

        /// A command whose arguments make sense.
        #[derive(Debug)]
        pub enum Request {
            $($name($module::Request),)*
            $($volume_name($volume_module::Request),)*
        }

        impl Command {
            /// Checks the arguments; nothing outside is looked at.
            ///
            /// # Errors
            /// `Invalid`.
            pub fn check(self) -> Result<Request> {
                Ok(match self {
                    $(Command::$name(arguments) => Request::$name(arguments.check()?),)*
                    $(Command::Volumes(VolumesCommand::$volume_name(arguments)) => Request::$volume_name(arguments.check()?),)*
                })
            }
        }

        impl Request {
            /// Does it.
            ///
            /// # Errors
            /// Whatever the store and the daemon say.
            pub async fn run<B: Backend>(self, context: &Context<B>) -> Result<Report> {
                match self {
                    $(Request::$name(request) => request.run(context).await,)*
                    $(Request::$volume_name(request) => request.run(context).await,)*
                }
            }
        }
    };
}

commands! {
    /// Verify everything in the store that a volume refers to
    Check => check,
    /// Print a manifest, checkpoint, segment or write log as a person can read it
    Dump => dump,
    /// Show the daemon and what is attached to it
    Status => status,
    ;
    /// Create a volume
    Create => create,
    /// List volumes
    #[command(visible_alias = "ls")]
    List => list,
    /// Show a volume
    Show => show,
    /// Destroy volumes; they can be brought back for a while
    Destroy => destroy,
    /// Bring a destroyed volume back
    Undelete => undelete,
    /// Attach a volume to the daemon
    Attach => attach,
    /// Upload what is left and hand a volume back
    Detach => detach,
    /// Wait until everything written so far is in the store
    Sync => sync,
    /// Change a volume's durability
    Update => update,
}
