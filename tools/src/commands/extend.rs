//! `varve volumes extend`

use clap::Args;
use serde::Serialize;
use varve::admin::Admin;
use varve::error::Result;
use varve::service::VolumeChange;
use varve::settings::parse_volume_size;
use varve::units::{ByteLen, VolumeId};

use crate::commands::Command;
use crate::context::Context;
use crate::owner;
use crate::render::{self, Block};
use crate::target::Target;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Id or name of the volume
    #[arg(value_name = "ID")]
    volume: Target,
    /// The new size, in GB (2^30 bytes) or with a unit: 512MiB; not smaller than the old one
    #[arg(long, value_name = "GB", allow_hyphen_values = true, value_parser = parse_volume_size)]
    size: ByteLen,
}

/// What it is now.
#[derive(Serialize)]
pub struct Extended {
    id: VolumeId,
    name: String,
    /// In bytes.
    size: ByteLen,
    /// NBD clients that were connected then; they have to connect again to see the new size.
    clients: u64,
}

impl Command for Arguments {
    type Output = Extended;

    /// Asks the owner if it is here; else changes the manifest of a volume that nobody owns. The size that it has is no error.
    async fn run(self, context: &Context) -> Result<Extended> {
        let id = self.volume.id(context).await?;
        let change = VolumeChange { size: Some(self.size), ..VolumeChange::default() };
        let asked = async {
            let status = context.daemon.update(id, &change).await?;
            Ok(Extended { id, name: status.name, size: status.size, clients: status.clients })
        };
        let detached = async |store: &Admin| {
            let volume = store.update_volume(id, change.clone()).await?;
            Ok(Extended { id, name: volume.name, size: volume.size, clients: 0 })
        };
        let command = format!("extend --size {}KiB", self.size.0 >> 10);
        owner::or_change(context, id, &command, asked, detached).await
    }

    fn text(extended: &Extended) -> String {
        let Extended { id, name, size, clients } = extended;
        let mut text = Block::default().line("ID", id).line("Name", name).line("Size", render::size(*size)).finish();
        if *clients != 0 {
            text += &format!(
                "\n{clients} connected clients see the new size when they connect again; new ones see it at once.\n\
                 QEMU with reconnect-delay: restart varved, which makes it connect again at the guest's next request without failing any;\n\
                 then tell the guest, in the monitor: block_resize DEVICE {size}B\n\
                 Linux: unmount, 'nbd-client -d /dev/nbdN', and connect again; then grow the file system (resize2fs, xfs_growfs).\n"
            );
        }
        text
    }
}
