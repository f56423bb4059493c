//! Pipes, and sockets and character devices in their place: one transport for each direction.

mod read;
mod unsent;
mod write;

pub use read::ReadPipeTransport;
pub use write::WritePipeTransport;

use super::base::{Base, Transport};
use super::names::GET_EXTRA_INFO;
use crate::driver::pipe::{FileKind, set_nonblocking};
use crate::py::{Args, Exc, Obj, Ref, Result, Signature, Type, copy_current_context};
use crate::py::{Native, state_of_type};
use crate::state::State;

/// What both types are called with.
const fn parameters(function: &'static str) -> Signature<5> {
    Signature {
        function,
        names: ["loop", "pipe", "protocol", "waiter", "extra"],
        required: 3,
        positional: 5,
    }
}

/// The file that a new transport is to work on.
struct Opened<'a> {
    base: Base,
    kind: FileKind,
    waiter: Option<&'a Obj>,
}

/// Checks the file and makes it non-blocking. Raises `ValueError` with the text `refusal` for a
/// kind of file that has no transport, and `OSError` where it is closed.
fn open<'a, T: Native>(
    class: &Type<T>,
    args: &'a Args,
    signature: &Signature<5>,
    refusal: &str,
) -> Result<Opened<'a>> {
    let gil = args.gil;
    let state = state_of_type::<State, _>(class)?;
    let [home, pipe, protocol, waiter, extra] = args.bind(signature)?;
    let (Some(home), Some(pipe), Some(protocol)) = (home, pipe, protocol) else {
        return Err(Exc::type_error(gil, "missing argument"));
    };
    let home = state.event_loop.cast(home)?;
    let fd = pipe.call_method(&state.names.fileno, [])?.to_i32()?;
    let os_error = |error| Exc::os(gil, &error);
    let kind = FileKind::of(fd).map_err(os_error)?;
    if kind == FileKind::Other {
        return Err(Exc::value_error(gil, refusal));
    }
    set_nonblocking(fd).map_err(os_error)?;
    let base = Base::new(home, fd, Some(pipe), copy_current_context(gil)?);
    let extra = extra.and_then(Obj::some).cloned().map_or_else(|| Obj::dict(gil), Ok)?;
    extra.set_item("pipe", pipe)?;
    base.extra.set(Some(extra));
    base.protocol.set(Some(protocol.clone()));
    Ok(Opened { base, kind, waiter: waiter.and_then(Obj::some) })
}

trait PipeTransport: Transport {
    /// 'pipe', or what the maker of the transport added.
    fn get_extra_info(this: &Ref<Self>, args: &Args) -> Result<Obj> {
        let [name, default] = args.bind(&GET_EXTRA_INFO)?;
        let value = match (name, this.extra.get()) {
            (Some(name), Some(extra)) => extra.dict_item(name)?,
            _ => None,
        };
        Ok(value.or(default.cloned()).unwrap_or_else(|| Obj::none(args.gil)))
    }

    fn get_extra(this: &Ref<Self>) -> Result<Option<Obj>> {
        Ok(this.extra.get())
    }

    fn get_pipe(this: &Ref<Self>) -> Result<Option<Obj>> {
        Ok(this.file.get())
    }
}

impl<T: Transport> PipeTransport for T {}
