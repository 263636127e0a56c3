//! `varve volumes diff`

use std::fmt::Write as _;

use clap::Args;
use serde::Serialize;
use varve::error::{Error, ErrorKind, Result};
use varve::lineage;

use crate::commands::Command;
use crate::context::Context;
use crate::image::{Frozen, Source, interrupted};
use crate::render;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The older side: id or name of a volume, or id of a snapshot
    #[arg(value_name = "FROM")]
    from: Source,
    /// The newer side
    #[arg(value_name = "TO")]
    to: Source,
}

/// What may have changed, in order.
#[derive(Serialize)]
pub struct Differences {
    from: String,
    to: String,
    /// Bytes in all extents.
    changed: varve::units::ByteLen,
    extents: Vec<Extent>,
}

/// Bytes that may differ.
#[derive(Serialize)]
struct Extent {
    offset: u64,
    length: u64,
    /// True if they read as zero on the newer side.
    zero: bool,
}

impl Command for Arguments {
    type Output = Differences;

    async fn run(self, context: &Context) -> Result<Differences> {
        let from = self.from.freeze(context, "diff").await?;
        let to = match self.to.freeze(context, "diff").await {
            Ok(to) => to,
            Err(error) => {
                from.release(context).await;
                return Err(error);
            }
        };
        let outcome = tokio::select! {
            outcome = compare(&from, &to) => outcome,
            () = interrupted() => Err(Error::new(ErrorKind::Stopping, "the comparison was interrupted")),
        };
        from.release(context).await;
        to.release(context).await;
        outcome
    }

    fn text(differences: &Differences) -> String {
        let mut text = format!("{:>16}  {:>16}  KIND\n", "OFFSET", "LENGTH");
        for extent in &differences.extents {
            let kind = if extent.zero { "zero" } else { "data" };
            // Writing into memory does not fail.
            let _ = writeln!(text, "{:>16}  {:>16}  {kind}", extent.offset, extent.length);
        }
        let (count, changed) = (differences.extents.len(), differences.changed);
        let _ = writeln!(text, "{count} extents, {changed} bytes ({})", render::size(changed));
        text
    }
}

async fn compare(from: &Frozen, to: &Frozen) -> Result<Differences> {
    let mut differences = Differences {
        from: from.id.clone(),
        to: to.id.clone(),
        changed: varve::units::ByteLen(0),
        extents: Vec::new(),
    };
    lineage::diff(&from.map, &to.map, &mut |extent| {
        let (offset, length) = (extent.range.start.byte_offset(), extent.range.count.bytes().0);
        differences.changed.0 += length;
        differences.extents.push(Extent { offset, length, zero: extent.zero });
        Ok(())
    })
    .await?;
    Ok(differences)
}
