//! Options that several subcommands have.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use crate::mix::{Mix, Shape};

/// Which events. Given alike, they are the same.
#[derive(Args, Clone, Debug)]
pub(crate) struct MixOptions {
    /// Distinct events; some 2 % are published twice beside that.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    events: u64,
    /// Which campaigns they belong to.
    #[arg(long, value_enum, default_value_t = Shape::Mixed)]
    campaigns: Shape,
    /// What chance begins with.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What the campaigns' names begin with: another one for each load on one account.
    #[arg(long, default_value = "cmp")]
    name: String,
    /// When the youngest event is, in milliseconds since 1970; by default the last midnight, UTC, so that a day's runs agree.
    #[arg(long)]
    now_ms: Option<i64>,
}

impl MixOptions {
    /// The events that the options mean.
    pub(crate) fn mix(&self) -> anyhow::Result<Mix> {
        let midnight_ms = |now_ms: i64| now_ms - now_ms.rem_euclid(24 * 3600 * 1000);
        let now_ms = self.now_ms.map_or_else(|| now_ms().map(midnight_ms), Ok)?;
        Ok(Mix::new(self.campaigns, &self.name, self.events, now_ms, self.seed))
    }
}

/// Now, in milliseconds since 1970.
pub(crate) fn now_ms() -> anyhow::Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}
