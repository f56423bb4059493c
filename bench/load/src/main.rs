//! The `kloop-load` command.

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;

use kloop_load::arguments::{self, Hold, Plan, Request, USAGE, Work};
use kloop_load::connection::Lifetime;
use kloop_load::hold;
use kloop_load::protocol::{Bulk, Echo, Get};
use kloop_load::session;

fn main() -> ExitCode {
    let request = match arguments::parse(env::args_os().skip(1)) {
        Ok(request) => request,
        Err(error) => {
            eprintln!("kloop-load: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let outcome = match request {
        Request::Help => say(USAGE),
        Request::Version => say(concat!("kloop-load ", env!("CARGO_PKG_VERSION"), "\n")),
        Request::Run(plan) => run(&plan),
        Request::Hold(plan) => hold(&plan),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("kloop-load: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(plan: &Plan) -> Result<(), String> {
    let close = plan.lifetime == Lifetime::SingleRequest;
    let report = match &plan.work {
        Work::Echo(size) => session::run(plan, |_| Echo::new(*size)),
        Work::Get(path) => session::run(plan, |target| Get::new(&target.address, path, close)),
        Work::Download(bytes) => session::run(plan, |_| Bulk::download(*bytes)),
        Work::Upload(bytes) => session::run(plan, |_| Bulk::upload(*bytes)),
    }
    .map_err(|error| error.to_string())?;
    for target in report.targets.iter().filter(|target| target.errors > 0) {
        let messages = target.error_messages.join("; ");
        eprintln!("kloop-load: target '{}': {} errors: {messages}", target.name, target.errors);
    }
    let json = serde_json::to_string(&report).map_err(|error| error.to_string())?;
    say(&format!("{json}\n"))
}

/// Keeps connections open until standard input ends.
fn hold(plan: &Hold) -> Result<(), String> {
    let until_input_ends = || {
        say(&format!("HOLDS {}\n", plan.connections))?;
        io::copy(&mut io::stdin(), &mut io::sink()).map_err(|error| error.to_string())?;
        Ok(())
    };
    match &plan.work {
        Work::Echo(size) => hold::run(plan, |_| Echo::new(*size), until_input_ends),
        Work::Get(path) => {
            hold::run(plan, |target| Get::new(&target.address, path, false), until_input_ends)
        }
        Work::Download(bytes) => hold::run(plan, |_| Bulk::download(*bytes), until_input_ends),
        Work::Upload(bytes) => hold::run(plan, |_| Bulk::upload(*bytes), until_input_ends),
    }
}

fn say(text: &str) -> Result<(), String> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| format!("cannot write the result: {error}"))
}
