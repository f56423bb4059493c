//! `Operation`: what `await` waits for when a stream is read or drained.
//!
//! It is a coroutine, and while it waits it is also the future that its task waits for, so that one
//! object, from a free list, makes one await.

use std::cell::Cell;
use std::ffi::CStr;

use super::protocol::StreamProtocol;
use super::reader::StreamReader;
use super::reading::Read;
use super::writer::StreamWriter;
use super::{Streams, asyncio_error};
use crate::event_loop::EventLoop;
use crate::py::{
    Advance, Args, Describe, Exc, FreeList, GetSet, Method, Native, Obj, ObjCell, Ref, Result,
    Signature, SpareStop, Step, ToObj, Visit, copy_current_context, warn_never_awaited,
};

pub enum Work {
    Read(Ref<StreamReader>, Read),
    Drain(Ref<StreamWriter>),
    /// What is left of a drain once the writer has been looked at.
    Flush(Ref<StreamProtocol>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    /// Gives way to others once.
    Yielded,
    Waiting,
    Woken,
    Cancelled,
    Finished,
}

pub struct Operation {
    work: Work,
    stage: Cell<Stage>,
    /// Whether the task has still to notice that it is to wait.
    blocking: Cell<bool>,
    /// What to raise in place of going on; the message, for one that was cancelled.
    failure: ObjCell,
    /// The task's wake-up, and the context to run it in.
    callback: ObjCell,
    context: ObjCell,
}

impl Operation {
    #[inline]
    pub fn create(streams: &Streams, work: Work) -> Result<Ref<Self>> {
        streams.operation.alloc_from(
            &streams.spare_operations,
            Operation {
                work,
                stage: Cell::new(Stage::New),
                blocking: Cell::new(false),
                failure: ObjCell::empty(),
                callback: ObjCell::empty(),
                context: ObjCell::empty(),
            },
        )
    }

    fn home(&self) -> &Ref<EventLoop> {
        match &self.work {
            Work::Read(reader, _) => &reader.home,
            Work::Drain(writer) => &writer.home,
            Work::Flush(protocol) => &protocol.home,
        }
    }

    fn name(&self) -> &'static str {
        match &self.work {
            Work::Read(_, read) => read.name(),
            Work::Drain(_) => "StreamWriter.drain",
            Work::Flush(_) => "StreamReaderProtocol._drain_helper",
        }
    }

    /// The way in which a reader's data is to be read.
    pub fn read(&self) -> Option<&Read> {
        match &self.work {
            Work::Read(_, read) => Some(read),
            _ => None,
        }
    }

    // The coroutine.

    fn advance(this: &Ref<Self>) -> Result<Step> {
        let stage = this.stage.get();
        let text = match stage {
            Stage::Waiting => "coroutine is being awaited already",
            Stage::Finished => "cannot reuse already awaited coroutine",
            _ => {
                this.stage.set(Stage::Finished);
                return Self::go_on(this, stage);
            }
        };
        Err(Exc::runtime_error(this.gil(), text))
    }

    fn go_on(this: &Ref<Self>, stage: Stage) -> Result<Step> {
        this.raise_failure(stage)?;
        let done = match &this.work {
            Work::Read(reader, read) => {
                if stage == Stage::New {
                    read.begin(reader)?;
                }
                let result = read.attempt(reader)?;
                if result.is_none() {
                    StreamReader::await_data(reader, this, read.short_name())?;
                }
                result
            }
            Work::Drain(writer) => {
                if stage == Stage::New && StreamWriter::check_drain(writer)? {
                    // For connection_lost() to be called: without this, code that writes and
                    // drains in a loop would never see that the connection is gone.
                    this.stage.set(Stage::Yielded);
                    return Ok(Step::Yield(Obj::none(this.gil())));
                }
                Self::flush(this, &writer.protocol, stage)?
            }
            Work::Flush(protocol) => Self::flush(this, protocol, stage)?,
        };
        match done {
            Some(result) => Ok(Step::Return(result)),
            None => {
                this.stage.set(Stage::Waiting);
                this.blocking.set(true);
                Ok(Step::Yield(this.obj().clone()))
            }
        }
    }

    fn flush(
        this: &Ref<Self>,
        protocol: &Ref<StreamProtocol>,
        stage: Stage,
    ) -> Result<Option<Obj>> {
        let waits = stage != Stage::Woken && StreamProtocol::await_room(protocol, this)?;
        Ok((!waits).then(|| Obj::none(this.gil())))
    }

    fn raise_failure(&self, stage: Stage) -> Result<()> {
        let (gil, failure) = (self.home().gil(), self.failure.get());
        match (stage, failure) {
            (Stage::Cancelled, Some(message)) => {
                Err(asyncio_error(gil, c"CancelledError", [&message]))
            }
            (Stage::Cancelled, None) => Err(asyncio_error(gil, c"CancelledError", [])),
            (_, Some(failure)) => Err(Exc::raise(failure)?),
            (_, None) => Ok(()),
        }
    }

    /// `send(None)`, as of a coroutine.
    fn send(this: &Ref<Self>, _: &Obj) -> Result<Obj> {
        match Self::advance(this)? {
            Step::Yield(obj) => Ok(obj),
            Step::Return(obj) => Err(Exc::stop_iteration(&obj)),
        }
    }

    /// `throw(exception)`, or with a class and a value as older code has it.
    fn throw(this: &Ref<Self>, args: &Args) -> Result<Obj> {
        let [what, value, _] = args.bind(&THROW)?;
        let none = Obj::none(args.gil);
        let what = what.unwrap_or(&none).clone();
        let error = match value.and_then(Obj::some) {
            Some(value) if value.is_instance(&what)? => value.clone(),
            Some(value) => what.call([value])?,
            None => what,
        };
        let finished = this.stage.replace(Stage::Finished) == Stage::Finished;
        this.forget_wait();
        if finished {
            let text = "cannot reuse already awaited coroutine";
            return Err(Exc::runtime_error(args.gil, text));
        }
        Err(Exc::raise(error)?)
    }

    fn close(this: &Ref<Self>) -> Result<()> {
        this.stage.set(Stage::Finished);
        this.forget_wait();
        Ok(())
    }

    fn forget_wait(&self) {
        self.detach();
        self.failure.set(None);
        self.callback.set(None);
        self.context.set(None);
    }

    /// Leaves where it waits.
    fn detach(&self) {
        match &self.work {
            Work::Read(reader, _) => reader.forget_waiter(self),
            Work::Drain(writer) => writer.protocol.forget_waiter(self),
            Work::Flush(protocol) => protocol.forget_waiter(self),
        }
    }

    fn get_name(this: &Ref<Self>) -> Result<&'static str> {
        Ok(this.name())
    }

    fn describe(this: &Ref<Self>) -> Result<String> {
        let stage = match this.stage.get() {
            Stage::New => "new",
            Stage::Waiting => "waiting",
            Stage::Finished => "finished",
            Stage::Yielded | Stage::Woken | Stage::Cancelled => "suspended",
        };
        Ok(format!("<coroutine {} {stage}>", this.name()))
    }

    // The future that a task waits for.

    /// What was waited for has happened, or cannot happen.
    pub fn wake(this: &Ref<Self>, failure: Option<&Obj>) -> Result<()> {
        if this.stage.get() != Stage::Waiting {
            return Ok(());
        }
        this.stage.set(Stage::Woken);
        this.failure.set(failure.cloned());
        Self::tell(this)
    }

    /// Has the task's wake-up run in the loop's next round of callbacks.
    fn tell(this: &Ref<Self>) -> Result<()> {
        let (callback, context) = (this.callback.take(), this.context.take());
        let (Some(callback), Some(context)) = (callback, context) else { return Ok(()) };
        let outcome = match this.failure.is_some() || this.stage.get() == Stage::Cancelled {
            true => this.obj().clone(),
            false => EventLoop::done_future(this.home())?,
        };
        EventLoop::soon(this.home(), &callback, &[outcome], Some(&context))
    }

    /// `add_done_callback(callback, *, context)`, for the one task that waits.
    fn add_done_callback(this: &Ref<Self>, args: &Args) -> Result<()> {
        let names = &this.home().state.names;
        let context = args.only_keyword("add_done_callback", &names.context, c"context")?;
        let [callback] = args.positional else {
            let text = "add_done_callback() takes one positional argument";
            return Err(Exc::type_error(args.gil, text));
        };
        let context = match context.and_then(Obj::some) {
            Some(context) => context.clone(),
            None => copy_current_context(args.gil)?,
        };
        if this.stage.get() != Stage::Waiting {
            let args = [this.obj().clone()];
            return EventLoop::soon(this.home(), callback, &args, Some(&context));
        }
        if this.callback.is_some() {
            let text = "coroutine is being awaited already";
            return Err(Exc::runtime_error(args.gil, text));
        }
        this.context.set(Some(context));
        this.callback.set(Some(callback.clone()));
        Ok(())
    }

    fn remove_done_callback(this: &Ref<Self>, callback: &Obj) -> Result<usize> {
        match this.callback.get() {
            Some(known) if known.equals(callback)? => {
                this.callback.set(None);
                Ok(1)
            }
            _ => Ok(0),
        }
    }

    /// `cancel(msg=None)`, by the task that waits.
    fn cancel(this: &Ref<Self>, args: &Args) -> Result<bool> {
        let [message] = args.bind(&CANCEL)?;
        if this.stage.get() != Stage::Waiting {
            return Ok(false);
        }
        this.detach();
        this.stage.set(Stage::Cancelled);
        this.failure.set(message.and_then(Obj::some).cloned());
        Self::tell(this)?;
        Ok(true)
    }

    /// None once the task is to go on; raises what it is to get instead.
    fn result(this: &Ref<Self>) -> Result<()> {
        match this.stage.get() {
            Stage::Waiting => {
                let text = "Result is not set.".to_obj(this.gil())?;
                Err(asyncio_error(this.gil(), c"InvalidStateError", [&text]))
            }
            stage => this.raise_failure(stage),
        }
    }

    fn done(this: &Ref<Self>) -> Result<bool> {
        Ok(this.stage.get() != Stage::Waiting)
    }

    fn cancelled(this: &Ref<Self>) -> Result<bool> {
        Ok(this.stage.get() == Stage::Cancelled)
    }

    fn get_loop(this: &Ref<Self>) -> Result<Obj> {
        Ok(this.home().obj().clone())
    }

    /// As of a future while it waits; None before, which says that it is none.
    fn get_blocking(this: &Ref<Self>) -> Result<Option<bool>> {
        match this.stage.get() {
            Stage::Waiting | Stage::Woken | Stage::Cancelled => Ok(Some(this.blocking.get())),
            _ => Ok(None),
        }
    }

    fn set_blocking(this: &Ref<Self>, value: &Obj) -> Result<()> {
        this.blocking.set(value.truth()?);
        Ok(())
    }
}

const THROW: Signature<3> = Signature {
    function: "throw",
    names: ["type", "value", "traceback"],
    required: 1,
    positional: 3,
};

const CANCEL: Signature<1> =
    Signature { function: "cancel", names: ["msg"], required: 0, positional: 1 };

impl Drop for Operation {
    fn drop(&mut self) {
        let streams = &self.home().state.streams;
        streams.spare_stop.clear();
        if self.stage.get() == Stage::New {
            warn_never_awaited(self.home().gil(), self.name());
        }
    }
}

impl Native for Operation {
    const NAME: &'static CStr = c"kloop._kloop.StreamOperation";
    const DOC: &'static CStr = c"What await waits for when a stream is read or drained.";
    const ADVANCE: Option<Advance<Self>> = Some(Operation::advance);
    const REPR: Option<Describe<Self>> = Some(Operation::describe);
    const METHODS: &'static [Method<Self>] = &[
        Method::one(c"send", Operation::send),
        Method::any(c"throw", Operation::throw),
        Method::noargs(c"close", Operation::close),
        Method::any(c"add_done_callback", Operation::add_done_callback),
        Method::one(c"remove_done_callback", Operation::remove_done_callback),
        Method::any(c"cancel", Operation::cancel),
        Method::noargs(c"result", Operation::result),
        Method::noargs(c"done", Operation::done),
        Method::noargs(c"cancelled", Operation::cancelled),
        Method::END,
    ];
    const GETSETS: &'static [GetSet<Self>] = &[
        GetSet::get(c"__name__", Operation::get_name),
        GetSet::get(c"__qualname__", Operation::get_name),
        GetSet::get(c"_loop", Operation::get_loop),
        GetSet::writable(
            c"_asyncio_future_blocking",
            Operation::get_blocking,
            Operation::set_blocking,
        ),
        GetSet::END,
    ];

    fn traverse(&self, visit: &mut Visit) {
        match &self.work {
            Work::Read(reader, read) => {
                visit.native(reader);
                if let Read::Until { separator, .. } = read {
                    visit.obj(separator);
                }
            }
            Work::Drain(writer) => visit.native(writer),
            Work::Flush(protocol) => visit.native(protocol),
        }
        for cell in [&self.failure, &self.callback, &self.context] {
            visit.cell(cell);
        }
    }

    fn clear(&self) {
        self.failure.set(None);
        self.callback.set(None);
        self.context.set(None);
    }

    fn free_list(&self) -> Option<FreeList> {
        Some(self.home().state.streams.spare_operations.clone())
    }

    fn spare_stop(&self) -> Option<&SpareStop> {
        Some(&self.home().state.streams.spare_stop)
    }
}
