"""Exceptions that protocols raise, and the context in which protocols are called."""

import asyncio
import contextvars
from collections.abc import Callable

import pytest

from support import (
    LOCALHOST,
    BufferedRecorder,
    ErrorLog,
    Factory,
    Recorder,
    Recording,
    address_of,
    connected_sockets,
    fill,
    linked,
    settle,
)

Loop = asyncio.AbstractEventLoop

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


class PlannedError(Exception):
    """Raised by the protocols of these tests."""


class FailsOnData(Recorder):
    def data_received(self, data: bytes) -> None:
        raise PlannedError


class FailsOnEof(Recorder):
    def eof_received(self) -> bool | None:
        raise PlannedError


class FailsOnEofBuffered(BufferedRecorder):
    def eof_received(self) -> bool | None:
        raise PlannedError


class FailsToGiveBuffer(BufferedRecorder):
    def get_buffer(self, sizehint: int) -> bytearray:
        raise PlannedError


class FailsOnBuffer(BufferedRecorder):
    def buffer_updated(self, nbytes: int) -> None:
        raise PlannedError


FATAL: list[tuple[Callable[[], Recording], str]] = [
    (FailsOnData, "data_received"),
    (FailsOnEof, "eof_received"),
    (FailsOnEofBuffered, "eof_received"),
    (FailsToGiveBuffer, "get_buffer"),
    (FailsOnBuffer, "buffer_updated"),
]


@pytest.mark.parametrize(("make", "method"), FATAL)
async def test_an_exception_while_receiving_ends_the_connection(
    loop: Loop, errors: ErrorLog, make: Callable[[], Recording], method: str
) -> None:
    async with linked(make) as link:
        if method != "eof_received":
            link.send(b"data")
        else:
            link.peer.shutdown(1)
        lost = await link.protocol.lost
        report = errors.take()
        assert report["message"] == f"Fatal error: protocol.{method}() call failed."
        assert type(report["exception"]) is PlannedError
        assert report["transport"] is link.transport
        assert report["protocol"] is link.protocol
        assert lost is report["exception"]
        assert link.transport.is_closing()


async def test_an_empty_buffer_ends_the_connection(loop: Loop, errors: ErrorLog) -> None:
    class GivesNothing(BufferedRecorder):
        size = 0

    async with linked(GivesNothing) as link:
        link.send(b"data")
        assert isinstance(await link.protocol.lost, RuntimeError)
        report = errors.take()
        assert report["message"] == "Fatal error: protocol.get_buffer() call failed."
        assert str(report["exception"]) == "get_buffer() returned an empty buffer"


async def test_an_exception_in_connection_made_is_reported_and_the_connection_stays(
    loop: Loop, errors: ErrorLog
) -> None:
    class FailsAtFirst(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            raise PlannedError

    async with linked(FailsAtFirst) as link:
        report = errors.take()
        assert type(report["exception"]) is PlannedError
        assert "connection_made" in report["message"]
        link.send(b"data")
        assert await link.protocol.received(4) == b"data"
        link.transport.write(b"answer")
        assert await link.receive(6) == b"answer"


async def test_an_exception_in_connection_lost_is_reported_and_the_socket_closed(
    loop: Loop, errors: ErrorLog
) -> None:
    class FailsAtLast(Recorder):
        def connection_lost(self, exc: BaseException | None) -> None:
            super().connection_lost(exc)
            raise PlannedError

    async with linked(FailsAtLast) as link:
        link.transport.close()
        await link.protocol.lost
        assert await link.receive_all() == b""
        assert link.transport.get_extra_info("socket").fileno() == -1
    report = errors.take()
    assert type(report["exception"]) is PlannedError


async def test_an_exception_in_pause_writing_is_reported_and_the_connection_stays(
    loop: Loop, errors: ErrorLog
) -> None:
    class FailsToPause(Recorder):
        def pause_writing(self) -> None:
            super().pause_writing()
            raise PlannedError

    async with linked(FailsToPause, small=True) as link:
        link.transport.set_write_buffer_limits(high=0)
        written = fill(link.transport)
        report = errors.take()
        assert report["message"] == "protocol.pause_writing() failed"
        assert type(report["exception"]) is PlannedError
        assert report["transport"] is link.transport
        assert report["protocol"] is link.protocol
        assert not link.transport.is_closing()
        assert len(await link.receive(written)) == written
        await link.protocol.resumed.wait()


async def test_an_exception_in_resume_writing_is_reported_and_the_connection_stays(
    loop: Loop, errors: ErrorLog
) -> None:
    class FailsToResume(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            raise PlannedError

    async with linked(FailsToResume, small=True) as link:
        link.transport.set_write_buffer_limits(high=0)
        written = fill(link.transport)
        assert len(await link.receive(written)) == written
        await link.protocol.resumed.wait()
        report = errors.take()
        assert report["message"] == "protocol.resume_writing() failed"
        assert type(report["exception"]) is PlannedError
        assert not link.transport.is_closing()
        link.transport.set_write_buffer_limits()
        link.transport.write(b"goes on")
        assert await link.receive(7) == b"goes on"


@pytest.mark.parametrize("exception", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("method", ["data_received", "eof_received", "buffer_updated"])
def test_exit_exceptions_of_a_protocol_leave_the_loop(
    loop: Loop, exception: type[BaseException], method: str
) -> None:
    def leave(*arguments: object) -> None:
        raise exception("as planned")

    async def connect() -> Recording:
        make = BufferedRecorder if method == "buffer_updated" else Recorder
        _, protocol = await loop.create_connection(make, sock=ours)
        return protocol

    ours, theirs = connected_sockets()
    with theirs:
        protocol = loop.run_until_complete(connect())
        setattr(protocol, method, leave)
        if method == "eof_received":
            theirs.shutdown(1)
        else:
            theirs.send(b"x")
        with pytest.raises(exception, match="as planned"):
            loop.run_forever()
        protocol.transport.abort()
        loop.run_until_complete(protocol.lost)


@pytest.mark.asyncio_leaks
async def test_the_server_lives_on_when_the_factory_fails(loop: Loop) -> None:
    calls = 0

    def make() -> Recorder:
        nonlocal calls
        calls += 1
        if calls in (1, 3):
            raise PlannedError
        return protocols()

    protocols = Factory(Recorder)
    server = await loop.create_server(make, LOCALHOST, 0)
    async with server:
        writers = []
        for number in range(1, 6):
            reader, writer = await asyncio.open_connection(*address_of(server))
            writers.append(writer)
            writer.write(b"%d" % number)
            if number in (1, 3):
                with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                    await reader.readexactly(1)
            else:
                protocol = await protocols.next()
                assert await protocol.received(1) == b"%d" % number
        assert server.is_serving()
        for writer in writers:
            writer.close()
        for protocol in protocols.made:
            await protocol.lost
    assert calls == 5


class ContextRecorder(Recorder):
    """Notes what every callback sees in the context variable."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = [("factory", variable.get())]

    def note(self, name: str) -> None:
        self.seen.append((name, variable.get()))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.note("connection_made")
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.note("data_received")
        super().data_received(data)

    def eof_received(self) -> bool | None:
        self.note("eof_received")
        return super().eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.note("connection_lost")
        super().connection_lost(exc)


EVERY_CALL = ["factory", "connection_made", "data_received", "eof_received", "connection_lost"]


async def test_protocols_are_called_in_the_context_of_the_connecting_task(loop: Loop) -> None:
    async def connect() -> ContextRecorder:
        variable.set("of the connecting task")
        _, protocol = await loop.create_connection(ContextRecorder, sock=ours)
        variable.set("set later")
        return protocol

    ours, theirs = connected_sockets()
    with theirs:
        protocol = await loop.create_task(connect())
        theirs.send(b"data")
        await protocol.received(4)
        theirs.close()
        await protocol.lost
    assert protocol.seen == [(name, "of the connecting task") for name in EVERY_CALL]
    assert variable.get() == "unset"


async def test_protocols_are_called_in_the_context_the_server_was_made_in(loop: Loop) -> None:
    async def serve() -> asyncio.Server:
        variable.set("of the server")
        return await loop.create_server(protocols, LOCALHOST, 0)

    protocols = Factory(ContextRecorder)
    server = await loop.create_task(serve())
    async with server:
        for _ in range(2):
            _, writer = await asyncio.open_connection(*address_of(server))
            writer.write(b"data")
            protocol = await protocols.next()
            await protocol.received(4)
            writer.close()
            await protocol.lost
            assert protocol.seen == [(name, "of the server") for name in EVERY_CALL]


async def test_what_a_callback_sets_stays_inside(loop: Loop) -> None:
    class Setting(Recorder):
        def data_received(self, data: bytes) -> None:
            variable.set("set by the protocol")
            super().data_received(data)

    async with linked(Setting) as link:
        link.send(b"x")
        await link.protocol.received(1)
        await settle()
        assert variable.get() == "unset"
