//! `Cores`: the main thread's side, as Python sees it.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::acceptor::{Acceptor, Found};
use super::team::{Failure, Message, Report, Team};
use super::worker;
use crate::driver::Config;
use crate::event_loop::{chosen_driver, open_driver};
use crate::py::{
    Args, Construct, Exc, GetSet, Method, Native, Obj, Ref, Result, Signature, ToObj, Type, Visit,
    check_signals, detach,
};

/// How long workers have to end after an abort before the process gives them up.
const ABORT_LIMIT: Duration = Duration::from_secs(5);

pub struct Cores {
    acceptor: RefCell<Acceptor>,
    team: Arc<Team>,
    /// What each worker is to do: text that kloop's Python code writes and reads.
    job: Arc<str>,
    on_ready: Obj,
    /// Called when accepting has ended, to close the listening sockets.
    on_stop: Obj,
    on_error: Obj,
    /// How long a drain may take before the workers are taken to be stuck.
    drain_limit: Duration,
    /// How often stop() was called: once drains, twice aborts.
    stops: Cell<u32>,
    /// Workers have not ended in time after an abort.
    stuck: Cell<bool>,
}

/// How far the shutdown has come.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Phase {
    Serving,
    Draining(Instant),
    Aborting(Instant),
}

const CONSTRUCTOR: Signature<8> = Signature {
    function: "Cores",
    names: [
        "cpus",
        "listeners",
        "signals",
        "job",
        "drain_timeout",
        "on_ready",
        "on_stop",
        "on_error",
    ],
    required: 8,
    positional: 8,
};

impl Cores {
    fn construct(class: &Type<Self>, args: &Args) -> Result<Ref<Self>> {
        let gil = args.gil;
        let [
            Some(cpus),
            Some(listeners),
            Some(signals),
            Some(job),
            Some(drain_timeout),
            Some(on_ready),
            Some(on_stop),
            Some(on_error),
        ] = args.bind(&CONSTRUCTOR)?
        else {
            return Err(Exc::type_error(gil, "Cores() needs all its arguments"));
        };
        let cpus = numbers(cpus)?.into_iter().map(|cpu| cpu as usize).collect::<Vec<_>>();
        let driver = open_driver(gil, chosen_driver(gil)?, &Config::default())?;
        let acceptor = Acceptor::new(driver, numbers(listeners)?, signals.to_i32()?);
        class.alloc(Cores {
            team: Arc::new(Team::new(&cpus, acceptor.waker())),
            acceptor: RefCell::new(acceptor),
            job: job.to_str()?.into(),
            on_ready: on_ready.clone(),
            on_stop: on_stop.clone(),
            on_error: on_error.clone(),
            drain_limit: Duration::try_from_secs_f64(drain_timeout.to_f64()?)
                .unwrap_or(Duration::MAX)
                .saturating_add(ABORT_LIMIT),
            stops: Cell::new(0),
            stuck: Cell::new(false),
        })
    }

    /// Starts the workers, accepts until stop() is called, and waits for the workers to end.
    ///
    /// Returns None, or what ended a worker: (core, module, class, message, traceback). An
    /// exception of a signal handler or of a callback is raised once the workers have ended.
    fn run(this: &Ref<Self>) -> Result<Option<Obj>> {
        let (threads, mut raised) = Self::start_workers(this);
        if raised.is_some() {
            // Those that have started must end again.
            this.stops.set(2);
        }
        let mut tally = Tally::default();
        let mut phase = Phase::Serving;
        while tally.ended < threads.len() {
            if let Err(error) = Self::turn(this, &mut tally, &mut phase) {
                raised.get_or_insert(error);
                this.stops.set(2);
            }
            if matches!(phase, Phase::Aborting(since) if since.elapsed() > ABORT_LIMIT) {
                this.stuck.set(true);
                return Err(Exc::runtime_error(this.gil(), "workers did not end in time"));
            }
        }
        detach(this.gil(), || threads.into_iter().for_each(|thread| drop(thread.join())));
        match raised {
            Some(error) => Err(error),
            None => tally.failure.map(|failure| failure_to_python(this, &failure)).transpose(),
        }
    }

    fn turn(this: &Ref<Self>, tally: &mut Tally, phase: &mut Phase) -> Result<()> {
        Self::advance(this, phase)?;
        Self::wait(this, *phase)?;
        check_signals(this.gil())?;
        Self::hand_out_connections(this)?;
        let complete = tally.ready == this.team.size();
        tally.read(&this.team);
        if tally.failure.is_some() {
            this.stops.set(2);
        } else if !complete && tally.ready == this.team.size() && this.stops.get() == 0 {
            Self::serve(this)?;
        }
        Self::advance(this, phase)
    }

    /// Starts as many workers as the system allows.
    fn start_workers(this: &Ref<Self>) -> (Vec<JoinHandle<()>>, Option<Exc>) {
        let mut threads = Vec::with_capacity(this.team.size());
        for index in 0..this.team.size() {
            match worker::start(&this.team, index, &this.job) {
                Ok(thread) => threads.push(thread),
                Err(error) => return (threads, Some(Exc::os(this.gil(), &error))),
            }
        }
        (threads, None)
    }

    /// Every worker is up: connections may come.
    fn serve(this: &Ref<Self>) -> Result<()> {
        Self::with_acceptor(this, Acceptor::start)?;
        this.on_ready.call([]).map(drop)
    }

    fn wait(this: &Ref<Self>, phase: Phase) -> Result<()> {
        let limit = match phase {
            Phase::Serving => None,
            Phase::Draining(since) => Some(this.drain_limit.saturating_sub(since.elapsed())),
            Phase::Aborting(_) => Some(ABORT_LIMIT / 10),
        };
        let mut acceptor = this.acceptor.borrow_mut();
        let wait = acceptor.prepare_wait(limit);
        detach(this.gil(), move || wait.block()).map_err(|error| Exc::os(this.gil(), &error))
    }

    fn hand_out_connections(this: &Ref<Self>) -> Result<()> {
        while let Some(found) = Self::with_acceptor(this, Acceptor::take)? {
            match found {
                Found::Connection(connection) => this.team.assign(connection),
                Found::Error(error) => {
                    this.on_error.call([Exc::os(this.gil(), &error).object()])?;
                }
            }
        }
        Ok(())
    }

    /// Follows what stop() has asked for. The phase has changed even where an error is returned.
    fn advance(this: &Ref<Self>, phase: &mut Phase) -> Result<()> {
        if matches!(phase, Phase::Draining(since) if since.elapsed() > this.drain_limit) {
            this.stops.set(2);
        }
        let mut stopped = Ok(());
        if *phase == Phase::Serving && this.stops.get() >= 1 {
            *phase = Phase::Draining(Instant::now());
            stopped = Self::with_acceptor(this, Acceptor::stop);
            stopped = stopped.and(this.on_stop.call([]).map(drop));
            this.team.imports.stop();
            this.team.broadcast(|| Message::Drain);
        }
        if matches!(phase, Phase::Draining(_)) && this.stops.get() >= 2 {
            *phase = Phase::Aborting(Instant::now());
            this.team.broadcast(|| Message::Abort);
        }
        stopped
    }

    fn with_acceptor<R>(
        this: &Ref<Self>,
        body: impl FnOnce(&mut Acceptor) -> std::io::Result<R>,
    ) -> Result<R> {
        body(&mut this.acceptor.borrow_mut()).map_err(|error| Exc::os(this.gil(), &error))
    }

    /// The first call stops accepting and lets the workers finish; the second ends them. Called by
    /// signal handlers while run() waits.
    fn stop(this: &Ref<Self>) -> Result<()> {
        this.stops.set(this.stops.get().saturating_add(1));
        Ok(())
    }

    fn is_stuck(this: &Ref<Self>) -> Result<bool> {
        Ok(this.stuck.get())
    }
}

/// What the workers have reported so far.
#[derive(Default)]
struct Tally {
    ready: usize,
    ended: usize,
    /// The first failure; others are often its consequence.
    failure: Option<Failure>,
}

impl Tally {
    fn read(&mut self, team: &Team) {
        while let Some((core, report)) = team.next_report() {
            match report {
                Report::Ready => self.ready += 1,
                Report::Ended => self.ended += 1,
                Report::Failed(reason) => {
                    self.failure.get_or_insert(Failure { core, ..reason });
                }
            }
        }
    }
}

fn numbers(list: &Obj) -> Result<Vec<RawFd>> {
    list.to_vec()?.iter().map(Obj::to_i32).collect()
}

fn failure_to_python(this: &Ref<Cores>, failure: &Failure) -> Result<Obj> {
    let gil = this.gil();
    let Failure { core, module, name, message, traceback } = failure;
    let items = [
        core.to_obj(gil)?,
        module.as_str().to_obj(gil)?,
        name.as_str().to_obj(gil)?,
        message.as_str().to_obj(gil)?,
        traceback.as_str().to_obj(gil)?,
    ];
    Obj::tuple(gil, &items)
}

impl Native for Cores {
    const NAME: &'static CStr = c"kloop._kloop.Cores";
    const DOC: &'static CStr = c"Workers on several cores, and the acceptor that feeds them.";
    const CONSTRUCT: Option<Construct<Self>> = Some(Cores::construct);
    const METHODS: &'static [Method<Self>] =
        &[Method::noargs(c"run", Cores::run), Method::noargs(c"stop", Cores::stop), Method::END];
    const GETSETS: &'static [GetSet<Self>] = &[GetSet::get(c"stuck", Cores::is_stuck), GetSet::END];

    fn traverse(&self, visit: &mut Visit) {
        visit.obj(&self.on_ready);
        visit.obj(&self.on_stop);
        visit.obj(&self.on_error);
    }

    fn clear(&self) {}
}
