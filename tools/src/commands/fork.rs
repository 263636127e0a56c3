//! `varve volumes fork`

use clap::Args;
use varve::admin::Admin;
use varve::error::Result;
use varve::service::NewForks;
use varve::settings::parse_name;
use varve::units::UnixMillis;

use crate::commands::Command;
use crate::commands::created::Volumes;
use crate::context::Context;
use crate::history::parse_time;
use crate::owner;
use crate::target::Target;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Id or name of the volume
    #[arg(value_name = "ID")]
    volume: Target,
    /// Name of the forks; that of the volume with '-fork' behind it, if not given
    #[arg(long, value_parser = parse_name)]
    name: Option<String>,
    /// Of the volume as it was then: 2026-11-21T04:23:58Z, or how long ago, such as 15m
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = parse_time)]
    at: Option<UnixMillis>,
    /// Region of the forks, named in the settings file; that of the volume, if not given
    #[arg(long, value_parser = parse_name)]
    region: Option<String>,
    /// How many forks to make
    #[arg(short = 'n', long, default_value = "1", allow_hyphen_values = true, value_parser = clap::value_parser!(u32).range(1..=i64::from(varve::limits::FORKS_AT_ONCE_MAX)))]
    count: u32,
}

impl Command for Arguments {
    type Output = Volumes;

    /// Asks the owner if it is here; else forks a volume that nobody owns.
    async fn run(self, context: &Context) -> Result<Volumes> {
        let id = self.volume.id(context).await?;
        let new = NewForks { name: self.name, count: self.count, region: self.region };
        if let Some(at) = self.at {
            let made = context.store().await?.fork_past(id, at, new).await?;
            return Ok(Volumes::new(self.count, made));
        }
        let asked = context.daemon.fork(id, &new);
        let detached = async |store: &Admin| store.fork_volume(id, new.clone()).await;
        let made = owner::or_change(context, id, "fork", asked, detached).await?;
        Ok(Volumes::new(self.count, made))
    }

    fn text(volumes: &Volumes) -> String {
        volumes.text()
    }
}
