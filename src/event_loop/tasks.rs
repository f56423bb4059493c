//! Futures and tasks: asyncio's C types, made without a detour through Python. As in asyncio,
//! what tests and tools put in the classes' place is used from then on.

use super::EventLoop;
use crate::py::{Args, Obj, Ref, Result, ToObj};

impl EventLoop {
    pub fn create_future(this: &Ref<EventLoop>) -> Result<Obj> {
        let state = &this.state;
        let future = state.future.get()?;
        if Self::is_implied(this, &future)? {
            return future.call([]);
        }
        future.call_with_names(&[this.obj()], &state.loop_keyword)
    }

    /// Whether an instance of the class belongs to this loop without being told so: asyncio's C
    /// types take the running loop. To name it would cost a third of the call.
    #[inline]
    fn is_implied(this: &Ref<EventLoop>, class: &Obj) -> Result<bool> {
        let state = &this.state;
        Ok((class.is(&state.c_task) || class.is(&state.c_future))
            && state.running_loop.call()?.is(this.obj()))
    }

    /// A future with the result None, always the same. A task that is woken with it goes on without
    /// a search for the result of what it has waited for.
    pub fn done_future(this: &Ref<EventLoop>) -> Result<Obj> {
        if let Some(done) = this.done_future.get() {
            return Ok(done);
        }
        let done = Self::create_future(this)?;
        done.call_method(&this.state.names.set_result, [&Obj::none(this.gil())])?;
        this.done_future.set(Some(done.clone()));
        Ok(done)
    }

    /// `asyncio.Task(coro, loop=self, **kwargs)`. Task factories, debug mode and wrong calls are
    /// left to asyncio's own method.
    pub(super) fn create_task(this: &Ref<EventLoop>, args: &Args) -> Result<Obj> {
        let known = args.positional.len() == 1
            && args
                .keyword_names()
                .all(|name| matches!(name.to_str(), Ok("name" | "context" | "eager_start")));
        if !known || this.debug() || this.is_closed() || this.task_factory.is_some() {
            return Self::create_task_by_asyncio(this, args);
        }
        let task = this.state.task.get()?;
        if Self::is_implied(this, &task)? {
            return task.call_like(args);
        }
        let names: Vec<Obj> = args.keyword_names().chain(["loop".to_obj(args.gil)?]).collect();
        let values: Vec<&Obj> =
            args.positional.iter().chain(args.values).chain([this.obj()]).collect();
        task.call_with_names(&values, &Obj::tuple(args.gil, &names)?)
    }

    fn create_task_by_asyncio(this: &Ref<EventLoop>, args: &Args) -> Result<Obj> {
        let all: Vec<&Obj> =
            std::iter::once(this.obj()).chain(args.positional).chain(args.values).collect();
        match args.names {
            Some(names) => this.state.base_create_task.call_with_names(&all, names),
            None => this.state.base_create_task.call_with_names(&all, &Obj::tuple(args.gil, &[])?),
        }
    }
}
