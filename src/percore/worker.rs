//! `Worker`: one core's thread, and its end of the connection to the main thread.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::team::{Failure, Message, Report, Team};
use crate::event_loop::{EventLoop, Mailbox};
use crate::py::{
    Args, Exc, GetSet, Gil, Method, Native, Obj, ObjCell, Ref, Result, Signature, ToObj, Visit,
    copy_current_context, detach, interpreter_id, run_in_own_interpreter,
};
use crate::state::State;
use crate::transport::accept_stream;

/// Starts the thread of one core: it pins itself, makes an interpreter, and runs the job there.
pub fn start(team: &Arc<Team>, index: usize, job: &Arc<str>) -> io::Result<JoinHandle<()>> {
    let (team, job) = (Arc::clone(team), Arc::clone(job));
    thread::Builder::new().name(format!("kloop-core-{index}")).spawn(move || {
        let run = || run_on_core(&team, index, &job);
        let result = catch_unwind(AssertUnwindSafe(run))
            .unwrap_or_else(|_| Err("the worker panicked".to_owned()));
        team.core(index).set_waker(None);
        if let Err(message) = result {
            let (module, name) = ("builtins".to_owned(), "RuntimeError".to_owned());
            let failure = Failure { core: index, module, name, message, ..Failure::default() };
            team.imports.stop();
            team.report(index, Report::Failed(failure));
        }
        // One that was interrupted may not have given its turn back.
        team.imports.end(index, false);
        team.report(index, Report::Ended);
    })
}

/// The error says in words why the worker could not run.
fn run_on_core(team: &Arc<Team>, index: usize, job: &str) -> std::result::Result<(), String> {
    let cpu = team.core(index).cpu;
    if !core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
        return Err(format!("the thread cannot be pinned to CPU {cpu}"));
    }
    run_in_own_interpreter(|gil| run_job(gil, team, index, job))?
}

/// Runs `kloop._worker.main(worker, job)`, which reports the handler's failures itself; an error
/// here is one of kloop's own.
fn run_job(gil: Gil, team: &Arc<Team>, index: usize, job: &str) -> std::result::Result<(), String> {
    let run = || {
        let module = Obj::import(gil, c"kloop._worker")?;
        let state = crate::py::state_of_module::<State>(gil, c"kloop._kloop")?;
        let worker = state.worker.alloc(Worker {
            team: Arc::clone(team),
            index,
            home: RefCell::new(None),
            factory: ObjCell::empty(),
            on_message: ObjCell::empty(),
            context: copy_current_context(gil)?,
            transports: RefCell::default(),
        })?;
        module.get(c"main")?.call([worker.obj(), &job.to_obj(gil)?]).map(drop)
    };
    run().map_err(|error: Exc| {
        format!("{}: {}", error.object().type_name(), error.object().display())
    })
}

pub struct Worker {
    team: Arc<Team>,
    index: usize,
    home: RefCell<Option<Ref<EventLoop>>>,
    factory: ObjCell,
    on_message: ObjCell,
    context: Obj,
    /// Open connections by their object's address, which keeps them alive.
    transports: RefCell<HashMap<usize, Obj>>,
}

const SERVE: Signature<3> = Signature {
    function: "serve",
    names: ["loop", "protocol_factory", "on_message"],
    required: 3,
    positional: 3,
};

const FAILED: Signature<4> = Signature {
    function: "failed",
    names: ["module", "name", "message", "traceback"],
    required: 4,
    positional: 4,
};

impl Worker {
    /// Waits until this worker may import its handler. False where it is to end instead.
    fn begin_import(this: &Ref<Self>) -> Result<bool> {
        let (team, index) = (Arc::clone(&this.team), this.index);
        Ok(detach(this.gil(), move || team.imports.begin(index)))
    }

    /// The handler is imported. `one_by_one`: the other workers should not import theirs at the
    /// same time.
    fn end_import(this: &Ref<Self>, one_by_one: &Obj) -> Result<()> {
        this.team.imports.end(this.index, one_by_one.truth()?);
        Ok(())
    }

    /// Takes connections from now on: each gets a protocol of the factory's. `on_message` is called
    /// with "drain", "abort", and "idle" when the last connection has closed.
    fn serve(this: &Ref<Self>, args: &Args) -> Result<()> {
        let [Some(home), Some(factory), Some(on_message)] = args.bind(&SERVE)? else {
            return Err(Exc::type_error(args.gil, "serve() needs all its arguments"));
        };
        let state = crate::py::state_of_module::<State>(args.gil, c"kloop._kloop")?;
        let home = state.event_loop.cast(home)?;
        this.factory.set(Some(factory.clone()));
        this.on_message.set(Some(on_message.clone()));
        this.home.replace(Some(home.clone()));
        let (asked, team, index) = (this.clone(), Arc::clone(&this.team), this.index);
        let has_mail = Box::new(move || team.core(index).has_mail());
        home.set_mailbox(Some(Mailbox::new(has_mail, asked, Worker::read_mail)));
        this.team.core(this.index).set_waker(EventLoop::waker(home));
        this.team.report(this.index, Report::Ready);
        Ok(())
    }

    /// Takes no more connections. Needed before the loop is closed.
    fn stop(this: &Ref<Self>) -> Result<()> {
        this.team.core(this.index).set_waker(None);
        let home = this.home.take();
        if let Some(home) = home {
            home.set_mailbox(None);
        }
        // They lead back to this worker, and on CPython 3.13 nothing else would end the cycle.
        this.factory.set(None);
        this.on_message.set(None);
        while let Some(message) = this.team.core(this.index).receive() {
            if let Message::Connection(_) = message {
                this.team.core(this.index).connection_closed();
            }
        }
        Ok(())
    }

    fn read_mail(this: &Ref<Self>, (): ()) -> Result<()> {
        while let Some(message) = this.team.core(this.index).receive() {
            match message {
                Message::Connection(connection) => Self::accept(this, connection)?,
                Message::Drain => Self::tell(this, "drain")?,
                Message::Abort => Self::tell(this, "abort")?,
            }
        }
        Ok(())
    }

    fn accept(this: &Ref<Self>, connection: std::os::fd::OwnedFd) -> Result<()> {
        let home = this.home.borrow().clone();
        let (Some(home), Some(factory)) = (home, this.factory.get()) else { return Ok(()) };
        let server = Some(this.obj());
        let core = this.team.core(this.index);
        let on_refused = || core.connection_closed();
        accept_stream(&home, connection, &factory, server, &this.context, on_refused)
    }

    fn tell(this: &Ref<Self>, message: &str) -> Result<()> {
        let Some(on_message) = this.on_message.get() else { return Ok(()) };
        on_message.call([&message.to_obj(this.gil())?]).map(drop)
    }

    /// Called by each transport when it starts, as asyncio.Server's method is.
    fn attach(this: &Ref<Self>, transport: &Obj) -> Result<()> {
        let replaced = this.transports.borrow_mut().insert(transport.address(), transport.clone());
        drop(replaced);
        Ok(())
    }

    /// Called by each transport after connection_lost().
    fn detach(this: &Ref<Self>, transport: &Obj) -> Result<()> {
        let (removed, left) = {
            let mut transports = this.transports.borrow_mut();
            (transports.remove(&transport.address()), transports.len())
        };
        if removed.is_some() {
            this.team.core(this.index).connection_closed();
            if left == 0 {
                Self::tell(this, "idle")?;
            }
        }
        Ok(())
    }

    /// Aborts every open connection.
    fn abort_connections(this: &Ref<Self>) -> Result<()> {
        let transports: Vec<Obj> = this.transports.borrow().values().cloned().collect();
        for transport in transports {
            transport.get(c"abort")?.call([])?;
        }
        Ok(())
    }

    fn connections(this: &Ref<Self>) -> Result<usize> {
        Ok(this.transports.borrow().len())
    }

    /// Ends the whole call with this exception.
    fn failed(this: &Ref<Self>, args: &Args) -> Result<()> {
        let [module, name, message, traceback] = args.bind(&FAILED)?;
        let text = |value: Option<&Obj>| value.map_or_else(String::new, Obj::display);
        let failure = Failure {
            core: this.index,
            module: text(module),
            name: text(name),
            message: text(message),
            traceback: text(traceback),
        };
        this.team.imports.stop();
        this.team.report(this.index, Report::Failed(failure));
        Ok(())
    }

    fn index(this: &Ref<Self>) -> Result<usize> {
        Ok(this.index)
    }

    fn cpu(this: &Ref<Self>) -> Result<usize> {
        Ok(this.team.core(this.index).cpu)
    }

    fn interpreter_id(this: &Ref<Self>) -> Result<i64> {
        Ok(interpreter_id(this.gil()))
    }
}

impl Native for Worker {
    const NAME: &'static CStr = c"kloop._kloop.Worker";
    const DOC: &'static CStr = c"One core's end of serve_per_core.";
    const METHODS: &'static [Method<Self>] = &[
        Method::noargs(c"begin_import", Worker::begin_import),
        Method::one(c"end_import", Worker::end_import),
        Method::any(c"serve", Worker::serve),
        Method::noargs(c"stop", Worker::stop),
        Method::noargs(c"abort_connections", Worker::abort_connections),
        Method::any(c"failed", Worker::failed),
        Method::one(c"_attach", Worker::attach),
        Method::one(c"_detach", Worker::detach),
        Method::END,
    ];
    const GETSETS: &'static [GetSet<Self>] = &[
        GetSet::get(c"index", Worker::index),
        GetSet::get(c"cpu", Worker::cpu),
        GetSet::get(c"interpreter_id", Worker::interpreter_id),
        GetSet::get(c"connections", Worker::connections),
        GetSet::END,
    ];

    fn traverse(&self, visit: &mut Visit) {
        visit.obj(&self.context);
        visit.cell(&self.factory);
        visit.cell(&self.on_message);
        if let Ok(home) = self.home.try_borrow()
            && let Some(home) = home.as_ref()
        {
            visit.native(home);
        }
        if let Ok(transports) = self.transports.try_borrow() {
            transports.values().for_each(|transport| visit.obj(transport));
        }
    }

    fn clear(&self) {
        self.factory.set(None);
        self.on_message.set(None);
        let home = self.home.take();
        let transports = self.transports.take();
        drop((home, transports));
    }
}
