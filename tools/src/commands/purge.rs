//! `varve volumes purge`

use clap::Args;
use varve::error::Result;
use varve::service::Swept;

use crate::commands::Command;
use crate::context::Context;
use crate::render::{self, Block};

/// There is nothing to give.
#[derive(Args, Debug)]
pub struct Arguments {}

impl Command for Arguments {
    type Output = Swept;

    async fn run(self, context: &Context) -> Result<Swept> {
        context.store().await?.purge().await
    }

    fn text(swept: &Swept) -> String {
        let mut block = Block::default();
        for id in &swept.purged {
            block = block.line("Purged", id);
        }
        for id in &swept.leftovers {
            block = block.line("Leftovers of", id);
        }
        block.line("Objects deleted", swept.objects).maybe("Next due", swept.next_due.map(render::moment)).finish()
    }

    fn failure(swept: &Swept) -> Option<String> {
        let count = swept.failures.len();
        (count != 0).then(|| format!("not everything could be removed: {}", swept.failures.join("; ")))
    }
}
