//! The `kloop-load` command.

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;

use kloop_load::arguments::{self, Plan, Request, USAGE};
use kloop_load::protocol::Echo;
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
    let report = session::run(plan, || Echo::new(plan.size)).map_err(|error| error.to_string())?;
    for target in report.targets.iter().filter(|target| target.errors > 0) {
        let messages = target.error_messages.join("; ");
        eprintln!("kloop-load: target '{}': {} errors: {messages}", target.name, target.errors);
    }
    let json = serde_json::to_string(&report).map_err(|error| error.to_string())?;
    say(&format!("{json}\n"))
}

fn say(text: &str) -> Result<(), String> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| format!("cannot write the result: {error}"))
}
