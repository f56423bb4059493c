//! `StreamProtocol`: between a transport and a reader.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;

use super::home;
use super::operation::{Operation, Work};
use super::reader::StreamReader;
use super::writer::StreamWriter;
use crate::event_loop::EventLoop;
use crate::py::{
    Args, Construct, Exc, GetSet, Method, Native, Obj, ObjCell, Offset, Ref, Result, Signature,
    ToObj, Type, Visit, Weak, state_of_type,
};
use crate::state::State;
use crate::transport::Sink;

pub struct StreamProtocol {
    pub home: Ref<EventLoop>,
    /// The reader belongs to its user: what comes for one that is gone is dropped.
    reader: RefCell<Option<Weak<StreamReader>>>,
    /// Of a server's connection, until its handler has it.
    strong_reader: RefCell<Option<Ref<StreamReader>>>,
    /// What a server calls with the reader and the writer.
    connected: ObjCell,
    transport: ObjCell,
    over_ssl: Cell<bool>,
    /// The handler's task, while the connection is there.
    task: ObjCell,
    /// The transport that the handler was called with.
    served: ObjCell,
    /// A future for the end of the connection, once somebody has asked.
    closed: ObjCell,
    lost: Cell<bool>,
    /// Why the connection was lost.
    reason: ObjCell,
    writing_paused: Cell<bool>,
    /// The operations that wait for room to write.
    drains: RefCell<Vec<Ref<Operation>>>,
    source_traceback: ObjCell,
}

const CONSTRUCTOR: Signature<3> = Signature {
    function: "StreamReaderProtocol",
    names: ["stream_reader", "client_connected_cb", "loop"],
    required: 1,
    positional: 3,
};

const UNHANDLED: &str = "Unhandled exception in client_connected_cb";

impl StreamProtocol {
    /// `StreamReaderProtocol(stream_reader, client_connected_cb=None, loop=None)`.
    fn construct(class: &Type<Self>, args: &Args) -> Result<Ref<Self>> {
        let state = state_of_type::<State, _>(class)?;
        let [reader, connected, given] = args.bind(&CONSTRUCTOR)?;
        let reader = reader.and_then(Obj::some);
        let reader = reader.map(|reader| state.streams.reader.cast(reader)).transpose()?;
        let connected = connected.and_then(Obj::some);
        let source_traceback = reader.map(StreamReader::get_source_traceback).transpose()?;
        class.alloc(StreamProtocol {
            home: home(args.gil, &state, given)?,
            reader: RefCell::new(reader.map(Weak::new).transpose()?),
            strong_reader: RefCell::new(connected.and(reader).cloned()),
            connected: ObjCell::from(connected.cloned()),
            transport: ObjCell::empty(),
            over_ssl: Cell::new(false),
            task: ObjCell::empty(),
            served: ObjCell::empty(),
            closed: ObjCell::empty(),
            lost: Cell::new(false),
            reason: ObjCell::empty(),
            writing_paused: Cell::new(false),
            drains: RefCell::default(),
            source_traceback: ObjCell::from(source_traceback.flatten()),
        })
    }

    #[inline]
    fn reader(&self) -> Option<Ref<StreamReader>> {
        let reader = self.reader.borrow();
        reader.as_ref().and_then(Weak::get)
    }

    // What the transport calls.

    fn connection_made(this: &Ref<Self>, transport: &Obj) -> Result<()> {
        let reader = this.reader();
        if let Some(reader) = &reader {
            if reader.has_transport() {
                return Err(Exc::assertion_error(this.gil(), "Transport already set"));
            }
            StreamReader::set_transport(reader, transport)?;
        }
        Self::use_transport(this, transport)?;
        // Another protocol may stand between, and pass on what it likes.
        if let Some(transport) = this.home.state.stream_transport.instance(transport)
            && transport.protocol.get().is_some_and(|protocol| protocol.is(this.obj()))
        {
            transport.set_sink(Some(Sink::new(this.clone(), Self::receive)));
        }
        match this.connected.get() {
            Some(connected) => Self::serve(this, &connected, reader, transport),
            None => Ok(()),
        }
    }

    fn use_transport(this: &Ref<Self>, transport: &Obj) -> Result<()> {
        this.transport.set(Some(transport.clone()));
        let state = &this.home.state;
        let over_ssl = !state.stream_transport.is_type_of(transport) && {
            let name = "sslcontext".to_obj(this.gil())?;
            !transport.call_method(&state.names.get_extra_info, [&name])?.is_none()
        };
        this.over_ssl.set(over_ssl);
        Ok(())
    }

    /// Has the server's callback take the connection over.
    fn serve(
        this: &Ref<Self>,
        connected: &Obj,
        reader: Option<Ref<StreamReader>>,
        transport: &Obj,
    ) -> Result<()> {
        let state = &this.home.state;
        let writer = StreamWriter::create(this, reader.as_ref(), transport)?;
        let reader = reader.to_obj(this.gil())?;
        let answer = connected.call([&reader, writer.obj()]);
        let strong_reader = this.strong_reader.take();
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if error.is_ordinary() => {
                Self::report(this, error.object(), transport)?;
                return transport.call_method(&state.names.close, []).map(drop);
            }
            Err(error) => return Err(error),
        };
        drop(strong_reader);
        if !state.streams.is_coroutine.call([&answer])?.truth()? {
            return Ok(());
        }
        let task = this.home.obj().call_method(&state.names.create_task, [&answer])?;
        this.task.set(Some(task.clone()));
        this.served.set(Some(transport.clone()));
        let done = this.obj().attr(&state.names._handler_done)?;
        task.call_method(&state.names.add_done_callback, [&done]).map(drop)
    }

    fn handler_done(this: &Ref<Self>, task: &Obj) -> Result<()> {
        let names = &this.home.state.names;
        let Some(transport) = this.served.take() else { return Ok(()) };
        if !task.call_method(&names.cancelled, [])?.truth()? {
            let error = task.call_method(&names.exception, [])?;
            if error.is_none() {
                return Ok(());
            }
            Self::report(this, &error, &transport)?;
        }
        transport.call_method(&names.close, []).map(drop)
    }

    fn report(this: &Ref<Self>, error: &Obj, transport: &Obj) -> Result<()> {
        let gil = this.gil();
        let context = Obj::dict(gil)?;
        context.set_item("message", &UNHANDLED.to_obj(gil)?)?;
        context.set_item("exception", error)?;
        context.set_item("transport", transport)?;
        let method = &this.home.state.names.call_exception_handler;
        this.home.obj().call_method(method, [&context]).map(drop)
    }

    /// What a native transport has received, in a turn of the loop.
    fn receive(this: &Ref<Self>, data: Obj) -> Result<()> {
        match this.reader() {
            Some(reader) => StreamReader::feed(&reader, data),
            None => Ok(()),
        }
    }

    fn data_received(this: &Ref<Self>, data: &Obj) -> Result<()> {
        match this.reader() {
            Some(reader) => StreamReader::feed_data(&reader, data),
            None => Ok(()),
        }
    }

    /// Keeps our side open, except over TLS, where there is no such thing.
    fn eof_received(this: &Ref<Self>) -> Result<bool> {
        if let Some(reader) = this.reader() {
            StreamReader::feed_eof(&reader)?;
        }
        Ok(!this.over_ssl.get())
    }

    fn connection_lost(this: &Ref<Self>, error: &Obj) -> Result<()> {
        let error = error.some();
        if let Some(reader) = this.reader() {
            match error {
                Some(error) => StreamReader::set_exception(&reader, error)?,
                None => StreamReader::feed_eof(&reader)?,
            }
        }
        this.lost.set(true);
        this.reason.set(error.cloned());
        if let Some(closed) = this.closed.get() {
            Self::settle(this, &closed)?;
        }
        if this.writing_paused.get() {
            Self::wake_drains(this, error)?;
        }
        let reader = this.reader.take();
        drop(reader);
        this.task.set(None);
        this.transport.set(None);
        Ok(())
    }

    fn pause_writing(this: &Ref<Self>) -> Result<()> {
        this.writing_paused.set(true);
        Ok(())
    }

    fn resume_writing(this: &Ref<Self>) -> Result<()> {
        this.writing_paused.set(false);
        Self::wake_drains(this, None)
    }

    fn wake_drains(this: &Ref<Self>, failure: Option<&Obj>) -> Result<()> {
        let drains = this.drains.take();
        drains.iter().try_for_each(|drain| Operation::wake(drain, failure))
    }

    // What the writer asks for.

    /// Has an operation wait for room to write. False if there is room.
    pub fn await_room(this: &Ref<Self>, operation: &Ref<Operation>) -> Result<bool> {
        if this.lost.get() {
            return Err(Exc::connection_reset(this.gil(), "Connection lost"));
        }
        if this.writing_paused.get() {
            this.drains.borrow_mut().push(operation.clone());
        }
        Ok(this.writing_paused.get())
    }

    /// The operation waits no more.
    pub fn forget_waiter(&self, operation: &Operation) {
        let mut drains = self.drains.borrow_mut();
        let place = drains.iter().position(|drain| std::ptr::eq(&**drain, operation));
        let drain = place.map(|place| drains.swap_remove(place));
        drop(drains);
        drop(drain);
    }

    fn drain_helper(this: &Ref<Self>) -> Result<Ref<Operation>> {
        Operation::create(&this.home.state.streams, Work::Flush(this.clone()))
    }

    /// The future for the end of the connection.
    fn get_closed(this: &Ref<Self>) -> Result<Obj> {
        if let Some(closed) = this.closed.get() {
            return Ok(closed);
        }
        let closed = EventLoop::create_future(&this.home)?;
        this.closed.set(Some(closed.clone()));
        if this.lost.get() {
            Self::settle(this, &closed)?;
        }
        Ok(closed)
    }

    fn get_close_waiter(this: &Ref<Self>, _: &Obj) -> Result<Obj> {
        Self::get_closed(this)
    }

    fn settle(this: &Ref<Self>, closed: &Obj) -> Result<()> {
        let names = &this.home.state.names;
        if closed.call_method(&names.done, [])?.truth()? {
            return Ok(());
        }
        match this.reason.get() {
            None => closed.call_method(&names.set_result, [&Obj::none(this.gil())])?,
            Some(error) => {
                closed.call_method(&names.set_exception, [&error])?;
                // Prevents a report if nobody asks.
                closed.call_method(&names.exception, [])?
            }
        };
        Ok(())
    }

    /// After start_tls().
    fn replace_transport(this: &Ref<Self>, transport: &Obj) -> Result<()> {
        Self::use_transport(this, transport)?;
        match this.reader() {
            Some(reader) => StreamReader::set_transport(&reader, transport),
            None => Ok(()),
        }
    }

    /// asyncio's `__del__` has nothing to do here.
    fn finalize(_: &Ref<Self>) {}

    // Attributes of asyncio's class.

    fn get_loop(this: &Ref<Self>) -> Result<Obj> {
        Ok(this.home.obj().clone())
    }

    fn get_reader(this: &Ref<Self>) -> Result<Option<Ref<StreamReader>>> {
        Ok(this.reader())
    }

    fn get_transport(this: &Ref<Self>) -> Result<Option<Obj>> {
        Ok(this.transport.get())
    }

    fn get_task(this: &Ref<Self>) -> Result<Option<Obj>> {
        Ok(this.task.get())
    }

    /// start_tls() asks which side it is on.
    fn get_connected(this: &Ref<Self>) -> Result<Option<Obj>> {
        Ok(this.connected.get())
    }

    fn get_over_ssl(this: &Ref<Self>) -> Result<bool> {
        Ok(this.over_ssl.get())
    }

    fn set_over_ssl(this: &Ref<Self>, value: &Obj) -> Result<()> {
        this.over_ssl.set(value.truth()?);
        Ok(())
    }

    fn get_writing_paused(this: &Ref<Self>) -> Result<bool> {
        Ok(this.writing_paused.get())
    }

    fn get_lost(this: &Ref<Self>) -> Result<bool> {
        Ok(this.lost.get())
    }

    fn get_source_traceback(this: &Ref<Self>) -> Result<Option<Obj>> {
        Ok(this.source_traceback.get())
    }
}

static OFFSET: Offset = Offset::new();

impl Native for StreamProtocol {
    const NAME: &'static CStr = c"kloop._kloop.StreamReaderProtocol";
    const DOC: &'static CStr =
        c"What joins a transport and a StreamReader. As asyncio.StreamReaderProtocol.";
    const WEAK_REFERENCES: bool = true;
    const DICT: bool = true;
    const CONSTRUCT: Option<Construct<Self>> = Some(StreamProtocol::construct);
    const FINALIZE: Option<fn(&Ref<Self>)> = Some(StreamProtocol::finalize);
    const METHODS: &'static [Method<Self>] = &[
        Method::named(
            c"connection_made",
            || Signature::one("connection_made", "transport"),
            StreamProtocol::connection_made,
        ),
        Method::named(
            c"data_received",
            || Signature::one("data_received", "data"),
            StreamProtocol::data_received,
        ),
        Method::noargs(c"eof_received", StreamProtocol::eof_received),
        Method::named(
            c"connection_lost",
            || Signature::one("connection_lost", "exc"),
            StreamProtocol::connection_lost,
        ),
        Method::noargs(c"pause_writing", StreamProtocol::pause_writing),
        Method::noargs(c"resume_writing", StreamProtocol::resume_writing),
        Method::noargs(c"_drain_helper", StreamProtocol::drain_helper),
        Method::one(c"_get_close_waiter", StreamProtocol::get_close_waiter),
        Method::one(c"_replace_transport", StreamProtocol::replace_transport),
        Method::one(c"_handler_done", StreamProtocol::handler_done),
        Method::END,
    ];
    const GETSETS: &'static [GetSet<Self>] = &[
        GetSet::get(c"_loop", StreamProtocol::get_loop),
        GetSet::get(c"_stream_reader", StreamProtocol::get_reader),
        GetSet::get(c"_transport", StreamProtocol::get_transport),
        GetSet::get(c"_task", StreamProtocol::get_task),
        GetSet::get(c"_client_connected_cb", StreamProtocol::get_connected),
        GetSet::writable(c"_over_ssl", StreamProtocol::get_over_ssl, StreamProtocol::set_over_ssl),
        GetSet::get(c"_closed", StreamProtocol::get_closed),
        GetSet::get(c"_paused", StreamProtocol::get_writing_paused),
        GetSet::get(c"_connection_lost", StreamProtocol::get_lost),
        GetSet::get(c"_source_traceback", StreamProtocol::get_source_traceback),
        GetSet::DICT,
        GetSet::END,
    ];

    fn extends() -> Option<&'static Offset> {
        Some(&OFFSET)
    }

    fn traverse(&self, visit: &mut Visit) {
        visit.native(&self.home);
        if let Ok(reader) = self.reader.try_borrow()
            && let Some(reader) = reader.as_ref()
        {
            reader.traverse(visit);
        }
        if let Ok(reader) = self.strong_reader.try_borrow()
            && let Some(reader) = reader.as_ref()
        {
            visit.native(reader);
        }
        if let Ok(drains) = self.drains.try_borrow() {
            drains.iter().for_each(|drain| visit.native(drain));
        }
        for cell in self.cells() {
            visit.cell(cell);
        }
    }

    fn clear(&self) {
        let readers = (self.reader.take(), self.strong_reader.take());
        let drains = self.drains.take();
        drop((readers, drains));
        self.cells().iter().for_each(|cell| cell.set(None));
    }
}

impl StreamProtocol {
    fn cells(&self) -> [&ObjCell; 7] {
        [
            &self.connected,
            &self.transport,
            &self.task,
            &self.served,
            &self.closed,
            &self.reason,
            &self.source_traceback,
        ]
    }
}
