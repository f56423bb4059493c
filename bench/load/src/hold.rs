//! Connections that are opened, used once, and kept idle.

use std::time::Duration;

use crate::arguments::{Hold, Target};
use crate::connection::Lifetime;
use crate::fleet::{Fleet, Pace, Wait};
use crate::limits::allow_connections;
use crate::protocol::Protocol;
use crate::session::describe;

/// Connections that are opened before each of them is used: fewer than a server's backlog, where
/// those it has not accepted yet wait.
const BATCH: usize = 100;

/// Opens all connections, has one exchange on each, so that the server has surely accepted it and
/// has what it needs for it, and calls `meanwhile` before it closes them.
pub fn run<P: Protocol>(
    plan: &Hold,
    protocol: impl Fn(&Target) -> P,
    meanwhile: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    allow_connections(plan.targets.len() * plan.connections).map_err(|error| error.to_string())?;
    // A burst without length is one exchange on each connection.
    let once =
        Pace { length: Duration::ZERO, patience: plan.timeout, wait: Wait::Sleep, rate: None };
    let mut fleets = Vec::new();
    for target in &plan.targets {
        let mut opened = 0;
        while opened < plan.connections {
            let count = BATCH.min(plan.connections - opened);
            let address = target.address.clone();
            let patience = plan.timeout;
            let burst =
                Fleet::connect(address, protocol(target), count, Lifetime::Persistent, patience)
                    .and_then(|mut fleet| fleet.burst(once).map(|burst| (fleet, burst)));
            let (fleet, burst) = burst.map_err(|fault| describe(target, fault).to_string())?;
            if burst.requests < count as u64 {
                let reasons = fleet.tally().messages.join("; ");
                return Err(format!("target '{}' lost connections: {reasons}", target.name));
            }
            opened += count;
            fleets.push(fleet);
        }
    }
    meanwhile()
}
