//! `StreamWriter`: a transport to write to, and the reader of the same connection.

use std::ffi::CStr;

use super::home;
use super::operation::{Operation, Work};
use super::protocol::StreamProtocol;
use super::reader::StreamReader;
use crate::event_loop::EventLoop;
use crate::py::{
    Args, Construct, Exc, GetSet, Method, Native, Obj, ObjCell, Offset, Ref, Result, Signature,
    Type, Visit, state_of_type,
};
use crate::state::State;
use crate::transport::StreamTransport;

pub struct StreamWriter {
    pub home: Ref<EventLoop>,
    pub protocol: Ref<StreamProtocol>,
    reader: Option<Ref<StreamReader>>,
    transport: ObjCell,
}

const CONSTRUCTOR: Signature<4> = Signature {
    function: "StreamWriter",
    names: ["transport", "protocol", "reader", "loop"],
    required: 4,
    positional: 4,
};

impl StreamWriter {
    /// `StreamWriter(transport, protocol, reader, loop)`; the reader may be None.
    fn construct(class: &Type<Self>, args: &Args) -> Result<Ref<Self>> {
        let state = state_of_type::<State, _>(class)?;
        let [transport, protocol, reader, given] = args.bind(&CONSTRUCTOR)?;
        let (Some(transport), Some(protocol)) = (transport, protocol) else {
            return Err(Exc::type_error(args.gil, "missing argument"));
        };
        let reader = reader.and_then(Obj::some);
        class.alloc(StreamWriter {
            home: home(args.gil, &state, given)?,
            protocol: state.streams.protocol.cast(protocol)?.clone(),
            reader: reader.map(|reader| state.streams.reader.cast(reader)).transpose()?.cloned(),
            transport: ObjCell::new(transport.clone()),
        })
    }

    pub fn create(
        protocol: &Ref<StreamProtocol>,
        reader: Option<&Ref<StreamReader>>,
        transport: &Obj,
    ) -> Result<Ref<Self>> {
        protocol.home.state.streams.writer.alloc(StreamWriter {
            home: protocol.home.clone(),
            protocol: protocol.clone(),
            reader: reader.cloned(),
            transport: ObjCell::new(transport.clone()),
        })
    }

    fn transport(this: &Ref<Self>) -> Result<Obj> {
        let gone = || Exc::runtime_error(this.gil(), "the stream has no transport");
        this.transport.get().ok_or_else(gone)
    }

    fn write(this: &Ref<Self>, data: &Obj) -> Result<Obj> {
        let transport = Self::transport(this)?;
        match this.home.state.stream_transport.instance(&transport) {
            Some(native) => StreamTransport::write(native, data).map(|()| Obj::none(this.gil())),
            None => transport.call_method(&this.home.state.names.write, [data]),
        }
    }

    fn writelines(this: &Ref<Self>, data: &Obj) -> Result<Obj> {
        Self::transport(this)?.call_method(&this.home.state.names.writelines, [data])
    }

    fn close(this: &Ref<Self>) -> Result<Obj> {
        Self::transport(this)?.call_method(&this.home.state.names.close, [])
    }

    fn is_closing(this: &Ref<Self>) -> Result<bool> {
        let transport = Self::transport(this)?;
        match this.home.state.stream_transport.instance(&transport) {
            Some(native) => Ok(native.closing.get()),
            None => transport.call_method(&this.home.state.names.is_closing, [])?.truth(),
        }
    }

    fn drain(this: &Ref<Self>) -> Result<Ref<Operation>> {
        Operation::create(&this.home.state.streams, Work::Drain(this.clone()))
    }

    /// Raises what the reader has got instead of data. Whether the connection is about to end.
    pub fn check_drain(this: &Ref<Self>) -> Result<bool> {
        if let Some(reader) = &this.reader {
            reader.raise_exception()?;
        }
        Self::is_closing(this)
    }

    /// asyncio's `__del__` closes and warns of a stream that nobody has closed.
    fn finalize(this: &Ref<Self>) {
        let finalize = &this.home.state.streams.finalize_writer;
        let done = match Self::is_closing(this) {
            Ok(true) => return,
            _ => finalize.call([this.obj()]),
        };
        if let Err(error) = done {
            error.unraisable(this.obj());
        }
    }

    fn get_loop(this: &Ref<Self>) -> Result<Obj> {
        Ok(this.home.obj().clone())
    }

    fn get_protocol(this: &Ref<Self>) -> Result<Obj> {
        Ok(this.protocol.obj().clone())
    }

    fn get_reader(this: &Ref<Self>) -> Result<Option<Ref<StreamReader>>> {
        Ok(this.reader.clone())
    }

    fn get_transport(this: &Ref<Self>) -> Result<Option<Obj>> {
        Ok(this.transport.get())
    }

    fn set_transport(this: &Ref<Self>, transport: &Obj) -> Result<()> {
        this.transport.set(Some(transport.clone()));
        Ok(())
    }
}

static OFFSET: Offset = Offset::new();

impl Native for StreamWriter {
    const NAME: &'static CStr = c"kloop._kloop.StreamWriter";
    const DOC: &'static CStr = c"What goes out over a connection. As asyncio.StreamWriter.";
    const WEAK_REFERENCES: bool = true;
    const DICT: bool = true;
    const CONSTRUCT: Option<Construct<Self>> = Some(StreamWriter::construct);
    const FINALIZE: Option<fn(&Ref<Self>)> = Some(StreamWriter::finalize);
    const METHODS: &'static [Method<Self>] = &[
        Method::named(c"write", || Signature::one("write", "data"), StreamWriter::write),
        Method::named(
            c"writelines",
            || Signature::one("writelines", "data"),
            StreamWriter::writelines,
        ),
        Method::noargs(c"close", StreamWriter::close),
        Method::noargs(c"is_closing", StreamWriter::is_closing),
        Method::noargs(c"drain", StreamWriter::drain),
        Method::END,
    ];
    const GETSETS: &'static [GetSet<Self>] = &[
        GetSet::get(c"transport", StreamWriter::get_transport),
        GetSet::writable(c"_transport", StreamWriter::get_transport, StreamWriter::set_transport),
        GetSet::get(c"_protocol", StreamWriter::get_protocol),
        GetSet::get(c"_reader", StreamWriter::get_reader),
        GetSet::get(c"_loop", StreamWriter::get_loop),
        GetSet::DICT,
        GetSet::END,
    ];

    fn extends() -> Option<&'static Offset> {
        Some(&OFFSET)
    }

    fn traverse(&self, visit: &mut Visit) {
        visit.native(&self.home);
        visit.native(&self.protocol);
        if let Some(reader) = &self.reader {
            visit.native(reader);
        }
        visit.cell(&self.transport);
    }

    fn clear(&self) {
        self.transport.set(None);
    }
}
