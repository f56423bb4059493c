//! A run: all targets, round by round.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use crate::arguments::{Plan, Target};
use crate::clock::{ServerClock, own_cpu, pin_to_cpu};
use crate::fleet::{Fault, Fleet, Pace};
use crate::limits::allow_connections;
use crate::protocol::Protocol;
use crate::report::{Latency, Report, Round, TargetReport, Totals, microseconds};

/// Why a run came to nothing, in one line.
#[derive(Debug)]
pub struct RunError(pub(crate) String);

impl fmt::Display for RunError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for RunError {}

struct Visited<P: Protocol> {
    target: Target,
    fleet: Fleet<P>,
    clock: Option<ServerClock>,
    rounds: Vec<Round>,
}

/// Does all that `plan` says; `protocol` makes the protocol for each target.
pub fn run<P: Protocol>(plan: &Plan, protocol: impl Fn(&Target) -> P) -> Result<Report, RunError> {
    if let Some(cpu) = plan.cpu {
        pin_to_cpu(cpu).map_err(|error| RunError(format!("cannot stay on CPU {cpu}: {error}")))?;
    }
    allow_connections(plan.targets.len() * plan.connections)
        .map_err(|error| RunError(error.to_string()))?;
    let mut visited = plan
        .targets
        .iter()
        .map(|target| Visited::open(target, plan, protocol(target)))
        .collect::<Result<Vec<_>, _>>()?;
    if !plan.warmup.is_zero() {
        for visited in &mut visited {
            visited.warm_up(plan)?;
        }
    }
    let progress = Progress::new(plan.rounds);
    for round in 0..plan.rounds {
        progress.show(round);
        for position in 0..visited.len() {
            // Each target comes early as often as late.
            let index = if round % 2 == 0 { position } else { visited.len() - 1 - position };
            visited[index].visit(plan)?;
        }
    }
    progress.show(plan.rounds);
    Ok(Report {
        rounds: plan.rounds,
        burst_ms: plan.burst.as_millis(),
        targets: visited.into_iter().map(|visited| visited.report(plan)).collect(),
    })
}

impl<P: Protocol> Visited<P> {
    fn open(target: &Target, plan: &Plan, protocol: P) -> Result<Self, RunError> {
        let clock = match target.pids.as_slice() {
            [] => None,
            pids => Some(ServerClock::new(pids).map_err(|error| no_clock(target, &error))?),
        };
        let address = target.address.clone();
        let fleet =
            Fleet::connect(address, protocol, plan.connections, plan.lifetime, plan.timeout)
                .map_err(|fault| describe(target, fault))?;
        Ok(Self { target: target.clone(), fleet, clock, rounds: Vec::with_capacity(plan.rounds) })
    }

    fn warm_up(&mut self, plan: &Plan) -> Result<(), RunError> {
        let pace = Pace { length: plan.warmup, ..pace(plan) };
        let burst = self.fleet.burst(pace).map_err(|fault| describe(&self.target, fault))?;
        if burst.requests == 0 {
            // Each round would wait as long for nothing.
            return Err(RunError(format!("target '{}' answered nothing", self.target.name)));
        }
        self.fleet.forget_latencies();
        Ok(())
    }

    fn visit(&mut self, plan: &Plan) -> Result<(), RunError> {
        self.fleet.repair(plan.timeout).map_err(|fault| describe(&self.target, fault))?;
        let server_before = self.server_cpu()?;
        let client_before = own_cpu();
        let burst = self.fleet.burst(pace(plan)).map_err(|fault| describe(&self.target, fault))?;
        let client_cpu = own_cpu().saturating_sub(client_before);
        let server_after = self.server_cpu()?;
        self.rounds.push(Round {
            requests: burst.requests,
            seconds: burst.elapsed.as_secs_f64(),
            server_cpu_us: server_after
                .zip(server_before)
                .map(|(after, before)| (after - before) as f64 / 1e3),
            client_cpu_us: microseconds(client_cpu),
        });
        Ok(())
    }

    fn server_cpu(&mut self) -> Result<Option<u64>, RunError> {
        match &mut self.clock {
            None => Ok(None),
            Some(clock) => match clock.settled() {
                Ok(nanoseconds) => Ok(Some(nanoseconds)),
                Err(error) => Err(no_clock(&self.target, &error)),
            },
        }
    }

    fn report(self, plan: &Plan) -> TargetReport {
        let totals = Totals::of(&self.rounds);
        let tally = self.fleet.tally();
        TargetReport {
            name: self.target.name,
            requests: totals.requests,
            lost: tally.lost,
            errors: tally.errors,
            error_messages: tally.messages.clone(),
            seconds: totals.seconds,
            requests_per_second: totals.requests_per_second,
            latency_us: Latency::of(&tally.latency),
            server_cpu_us_per_request: totals.server_cpu_us_per_request,
            client_cpu_us_per_request: totals.client_cpu_us_per_request,
            connections: plan.connections,
            size: plan.work.size(),
            rounds: self.rounds,
        }
    }
}

fn pace(plan: &Plan) -> Pace {
    Pace { length: plan.burst, patience: plan.timeout, wait: plan.wait, rate: plan.rate }
}

pub(crate) fn describe(target: &Target, fault: Fault) -> RunError {
    let Target { name, address, .. } = target;
    RunError(match fault {
        Fault::Unreachable(error) => {
            format!("target '{name}' cannot be reached at {address}: {error}")
        }
        Fault::Wrong(wrong) => format!("target '{name}' at {address} replied wrongly: {}", wrong.0),
        Fault::Poll(error) => format!("cannot wait for replies: {error}"),
    })
}

fn no_clock(target: &Target, error: &io::Error) -> RunError {
    let pids: Vec<String> = target.pids.iter().map(u32::to_string).collect();
    let (name, pids) = (&target.name, pids.join(", "));
    RunError(format!("processor time of '{name}' (process {pids}) cannot be read: {error}"))
}

/// A line on standard error that is written over, if somebody is there to see it.
struct Progress {
    rounds: usize,
    visible: bool,
}

impl Progress {
    fn new(rounds: usize) -> Self {
        Self { rounds, visible: rounds > 1 && io::stderr().is_terminal() }
    }

    fn show(&self, done: usize) {
        if self.visible {
            let end = if done == self.rounds { "\n" } else { "" };
            let mut stderr = io::stderr();
            // Progress that cannot be shown is no reason to stop.
            let _ = write!(stderr, "\rround {done}/{}{end}", self.rounds);
            let _ = stderr.flush();
        }
    }
}
