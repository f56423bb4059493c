//! What one interpreter's copy of the module holds: its types, names and asyncio's own objects.

#![deny(unsafe_code)]

use std::ffi::CStr;

use crate::event_loop::{EventLoop, HandleTypes, Poll, Watch};
use crate::percore::{Cores, Worker};
use crate::py::{
    FreeList, Getter, Gil, ModuleAttribute, ModuleState, ModuleWatcher, Obj, Result, ToObj, Type,
    Visit,
};
use crate::streams::Streams;
use crate::transport::{
    DatagramTransport, Listener, ReadPipeTransport, StreamTransport, WritePipeTransport,
};

macro_rules! names {
    ($($name:ident),* $(,)?) => {
        /// Interned names of attributes, methods and classes.
        #[allow(non_snake_case)]
        pub struct Names { $(pub $name: Obj),* }

        #[allow(non_snake_case)]
        impl Names {
            fn create(module: &Obj) -> Result<Self> {
                let gil = module.gil();
                // The identifier plus a NUL is a C string; interning keeps one copy of it.
                $(let $name = Obj::interned(gil, cstr(concat!(stringify!($name), "\0")))?;)*
                Ok(Names { $($name),* })
            }

            fn traverse(&self, visit: &mut Visit) {
                $(visit.obj(&self.$name);)*
            }
        }
    };
}

fn cstr(text: &'static str) -> &'static CStr {
    CStr::from_bytes_with_nul(text.as_bytes()).unwrap_or(c"?")
}

names!(
    Future,
    Task,
    _accept_failed,
    _attach,
    _callback_failed,
    _check_callback,
    _check_duration,
    _check_thread,
    _connection_failed,
    _debug_log,
    _detach,
    _handler_done,
    _io_failed,
    _read_ready,
    _run_in_debug_mode,
    _warn,
    add_done_callback,
    buffer_updated,
    call_exception_handler,
    call_later,
    cancelled,
    close,
    connection_lost,
    connection_made,
    context,
    create_task,
    data_received,
    datagram_received,
    eof_received,
    error_received,
    exception,
    fileno,
    get_buffer,
    get_extra_info,
    getpeername,
    getsockname,
    is_closing,
    pause_reading,
    pause_writing,
    recvfrom,
    resume_reading,
    resume_writing,
    sendto,
    done,
    set,
    set_exception,
    set_result,
    setblocking,
    wait,
    write,
    writelines,
);

/// A class of asyncio's accelerator module; None where there is no such module.
fn c_class(gil: Gil, name: &CStr) -> Result<Obj> {
    match Obj::import(gil, c"_asyncio") {
        Ok(module) => module.get(name),
        Err(_) => Ok(Obj::none(gil)),
    }
}

pub struct State {
    /// Memory of dead handles.
    pub spare_handles: FreeList,
    pub names: Names,
    pub event_loop: Type<EventLoop>,
    pub handles: HandleTypes,
    pub watch: Type<Watch>,
    pub poll: Type<Poll>,
    pub stream_transport: Type<StreamTransport>,
    pub datagram_transport: Type<DatagramTransport>,
    read_pipe_transport: Type<ReadPipeTransport>,
    write_pipe_transport: Type<WritePipeTransport>,
    pub listener: Type<Listener>,
    pub streams: Streams,
    pub cores: Type<Cores>,
    pub worker: Type<Worker>,
    /// `asyncio.futures.Future` and `asyncio.tasks.Task`.
    pub future: ModuleAttribute,
    pub task: ModuleAttribute,
    _watcher: ModuleWatcher,
    /// `asyncio.BaseEventLoop.create_task`: what to do when there is a task factory.
    pub base_create_task: Obj,
    pub buffered_protocol: Obj,
    pub transport_socket: Obj,
    pub socket: Obj,
    pub extract_stack: Obj,
    pub threading_event: Obj,
    pub to_fd: Obj,
    pub warn: Obj,
    pub resource_warning: Obj,
    pub set_result_unless_cancelled: Obj,
    pub sendfile_native: Obj,
    /// asyncio's own classes, unless they are written in Python.
    pub c_future: Obj,
    pub c_task: Obj,
    pub running_loop: Getter,
    /// The keyword tuple `("loop",)`.
    pub loop_keyword: Obj,
}

/// How many dead handles an interpreter keeps for new ones: at most two megabytes.
const SPARE_HANDLES: usize = 8192;

impl ModuleState for State {
    const NAME: &'static CStr = c"_kloop";
    const DOC: &'static CStr = c"The native half of kloop.";

    fn create(module: &Obj) -> Result<Self> {
        let gil = module.gil();
        let asyncio = Obj::import(gil, c"asyncio")?;
        // sendfile() asks for this subclass of asyncio.Transport.
        let flow_control = Obj::import(gil, c"asyncio.transports")?.get(c"_FlowControlMixin")?;
        // As asyncio's own, which is a Transport too.
        let datagram =
            Obj::tuple(gil, &[flow_control.clone(), asyncio.get(c"DatagramTransport")?])?;
        let base_loop = asyncio.get(c"BaseEventLoop")?;
        let futures = Obj::import(gil, c"asyncio.futures")?;
        let names = Names::create(module)?;
        let watcher = ModuleWatcher::new(module);
        Ok(State {
            event_loop: Type::create(module, None)?,
            handles: HandleTypes::create(module)?,
            watch: Type::create(module, None)?,
            poll: Type::create(module, None)?,
            stream_transport: Type::create(module, Some(&flow_control))?,
            datagram_transport: Type::create(module, Some(&datagram))?,
            read_pipe_transport: Type::create(module, Some(&asyncio.get(c"ReadTransport")?))?,
            write_pipe_transport: Type::create(module, Some(&flow_control))?,
            listener: Type::create(module, None)?,
            streams: Streams::create(module)?,
            cores: Type::create(module, None)?,
            worker: Type::create(module, None)?,
            spare_handles: FreeList::with_limit(SPARE_HANDLES),
            future: watcher.attribute(&futures, &names.Future),
            task: watcher.attribute(&Obj::import(gil, c"asyncio.tasks")?, &names.Task),
            _watcher: watcher,
            base_create_task: base_loop.get(c"create_task")?,
            buffered_protocol: asyncio.get(c"BufferedProtocol")?,
            transport_socket: Obj::import(gil, c"asyncio.trsock")?.get(c"TransportSocket")?,
            socket: Obj::import(gil, c"socket")?.get(c"socket")?,
            extract_stack: Obj::import(gil, c"asyncio.format_helpers")?.get(c"extract_stack")?,
            threading_event: Obj::import(gil, c"threading")?.get(c"Event")?,
            to_fd: Obj::import(gil, c"selectors")?.get(c"_fileobj_to_fd")?,
            warn: Obj::import(gil, c"warnings")?.get(c"warn")?,
            resource_warning: Obj::import(gil, c"builtins")?.get(c"ResourceWarning")?,
            set_result_unless_cancelled: futures.get(c"_set_result_unless_cancelled")?,
            sendfile_native: Obj::import(gil, c"asyncio.constants")?
                .get(c"_SendfileMode")?
                .get(c"TRY_NATIVE")?,
            c_future: c_class(gil, c"Future")?,
            c_task: c_class(gil, c"Task")?,
            running_loop: Getter::new(
                Obj::import(gil, c"asyncio.events")?.get(c"_get_running_loop")?,
            ),
            loop_keyword: Obj::tuple(gil, &["loop".to_obj(gil)?])?,
            names,
        })
    }

    fn traverse(&self, visit: &mut Visit) {
        self.names.traverse(visit);
        self.future.traverse(visit);
        self.task.traverse(visit);
        self.running_loop.traverse(visit);
        visit.class(&self.event_loop);
        self.handles.traverse(visit);
        visit.class(&self.watch);
        visit.class(&self.poll);
        visit.class(&self.stream_transport);
        visit.class(&self.datagram_transport);
        visit.class(&self.read_pipe_transport);
        visit.class(&self.write_pipe_transport);
        visit.class(&self.listener);
        self.streams.traverse(visit);
        visit.class(&self.cores);
        visit.class(&self.worker);
        for obj in [
            &self.base_create_task,
            &self.buffered_protocol,
            &self.transport_socket,
            &self.socket,
            &self.extract_stack,
            &self.threading_event,
            &self.to_fd,
            &self.warn,
            &self.resource_warning,
            &self.set_result_unless_cancelled,
            &self.sendfile_native,
            &self.c_future,
            &self.c_task,
            &self.loop_keyword,
        ] {
            visit.obj(obj);
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // Before the types.
        self.spare_handles.close();
        self.streams.spare_operations.close();
    }
}
