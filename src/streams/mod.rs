//! Streams: the native StreamReader, StreamWriter and the protocol that joins them to a transport.
//!
//! They extend asyncio's classes, whose methods that are not hot (`start_tls`, `wait_closed`,
//! `__repr__`, ...) they inherit: those find the attributes that they look for. A native transport
//! hands what it receives straight to the reader. The task that waits for it goes on when the loop
//! runs what is ready, as in asyncio: to let it go on at once, between two reads, costs more.

#![deny(unsafe_code)]

mod buffer;
mod operation;
mod protocol;
mod reader;
mod reading;
mod writer;

pub use operation::Operation;
pub use protocol::StreamProtocol;
pub use reader::StreamReader;
pub use writer::StreamWriter;

use crate::event_loop::EventLoop;
use crate::py::{Exc, FreeList, Gil, Obj, Ref, Result, SpareStop, Type, Visit};
use crate::state::State;

/// How many dead operations an interpreter keeps for new ones.
const SPARE_OPERATIONS: usize = 256;

/// asyncio's default limit, in bytes: of a line, and half that of the buffer.
const LIMIT: usize = 64 * 1024;

/// What the streams of one interpreter share.
pub struct Streams {
    /// Memory of dead operations.
    pub spare_operations: FreeList,
    spare_stop: SpareStop,
    reader: Type<StreamReader>,
    writer: Type<StreamWriter>,
    protocol: Type<StreamProtocol>,
    operation: Type<Operation>,
    /// `asyncio.StreamWriter.__del__`.
    finalize_writer: Obj,
    is_coroutine: Obj,
}

impl Streams {
    pub fn create(module: &Obj) -> Result<Self> {
        let gil = module.gil();
        let asyncio = Obj::import(gil, c"asyncio")?;
        let writer = asyncio.get(c"StreamWriter")?;
        Ok(Streams {
            spare_operations: FreeList::with_limit(SPARE_OPERATIONS),
            spare_stop: SpareStop::default(),
            reader: Type::create(module, Some(&asyncio.get(c"StreamReader")?))?,
            finalize_writer: writer.get(c"__del__")?,
            writer: Type::create(module, Some(&writer))?,
            protocol: Type::create(module, Some(&asyncio.get(c"StreamReaderProtocol")?))?,
            operation: Type::create(module, None)?,
            is_coroutine: asyncio.get(c"iscoroutine")?,
        })
    }

    pub fn traverse(&self, visit: &mut Visit) {
        visit.class(&self.reader);
        visit.class(&self.writer);
        visit.class(&self.protocol);
        visit.class(&self.operation);
        visit.obj(&self.finalize_writer);
        visit.obj(&self.is_coroutine);
    }
}

/// The loop that is given to a constructor, or the current one.
fn home(gil: Gil, state: &State, given: Option<&Obj>) -> Result<Ref<EventLoop>> {
    let current;
    let given = match given.and_then(Obj::some) {
        Some(given) => given,
        None => {
            current = Obj::import(gil, c"asyncio.events")?.get(c"get_event_loop")?.call([])?;
            &current
        }
    };
    state.event_loop.cast(given).cloned()
}

/// An exception of asyncio's own, `asyncio.exceptions.name(*args)`.
fn asyncio_error<const N: usize>(gil: Gil, name: &std::ffi::CStr, args: [&Obj; N]) -> Exc {
    let made = Obj::import(gil, c"asyncio.exceptions")
        .and_then(|module| module.get(name)?.call(args))
        .and_then(Exc::raise);
    made.unwrap_or_else(|error| error)
}
