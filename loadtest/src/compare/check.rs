//! Whether every total is right.

use std::sync::Arc;

use crate::client::Server;
use crate::mix::Mix;
use crate::mix::shown::{Timeline, View};

/// How many faults are told one by one.
const FAULTS_TOLD_MAX: usize = 5;

/// Compares the total of every campaign of a mix with what it must be, and tells what is wrong. Returns the sum of what the server says.
pub(super) async fn check_totals(
    server: &Server,
    mix: &Arc<Mix>,
    wrong: &mut Vec<String>,
) -> anyhow::Result<u64> {
    let mut connection = server.connect().await?;
    let (mut sum, mut faults) = (0, Vec::new());
    for (campaign, of_kinds) in (0..).zip(mix.totals()) {
        let want = of_kinds.iter().sum::<u64>();
        let said = connection.view(mix, &View::first(Timeline::Campaign(campaign), 1)).await?.total;
        sum += said;
        if said != want {
            faults.push(format!("campaign {campaign} says {said} in total, not {want}"));
        }
    }
    if faults.len() > FAULTS_TOLD_MAX {
        let more = faults.len() - FAULTS_TOLD_MAX;
        faults.truncate(FAULTS_TOLD_MAX);
        faults.push(format!("{more} more campaigns have wrong totals"));
    }
    wrong.extend(faults);
    Ok(sum)
}
