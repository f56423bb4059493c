"""Rare circumstances that once broke a loop: exits, finalisers and collections."""

import asyncio
import contextlib
import gc
import socket
import threading
import time
from collections.abc import Callable

import pytest

from kloop import _kloop
from support import ErrorLog, Recorder, StartChild, connected_sockets, linked, settle

Loop = asyncio.AbstractEventLoop

LIMIT = 20.0


class PlannedError(Exception):
    pass


async def test_connection_lost_may_fail_after_the_last_data_is_sent(
    loop: Loop, errors: ErrorLog
) -> None:
    class FailsAtLast(Recorder):
        def connection_lost(self, exc: BaseException | None) -> None:
            super().connection_lost(exc)
            raise PlannedError

    async with linked(FailsAtLast, small=True) as link:
        link.transport.write(b"x" * 1_000_000)
        link.transport.close()
        assert len(await link.receive_all()) == 1_000_000
        await link.protocol.lost
    assert isinstance(errors.take()["exception"], PlannedError)


async def test_a_peer_that_resets_before_our_end_of_file_is_sent(
    loop: Loop, errors: ErrorLog
) -> None:
    """The shutdown that follows the last data fails then; the loop must go on."""
    for _ in range(20):
        async with linked(Recorder, small=True) as link:
            link.transport.write(b"x" * 100_000)
            link.transport.write_eof()
            for _ in range(3):
                with contextlib.suppress(BlockingIOError):
                    link.peer.recv(100_000)
            link.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            link.peer.close()
            await link.protocol.lost
    errors.clear()


@pytest.mark.usefixtures("no_fd_left")
def test_an_exit_from_a_callback_loses_no_data(new_loop: Callable[[], Loop]) -> None:
    class LeavesOnce(Recorder):
        left = False

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not self.left:
                self.left = True
                raise KeyboardInterrupt

    async def main() -> tuple[LeavesOnce, socket.socket]:
        ours, theirs = connected_sockets()
        _, protocol = await loop.create_connection(LeavesOnce, sock=ours)
        return protocol, theirs

    async def finish() -> None:
        await protocol.received(size)
        protocol.transport.close()
        await protocol.lost

    loop = new_loop()
    protocol, theirs = loop.run_until_complete(main())
    theirs.setblocking(False)
    size = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            size += theirs.send(b"x" * 1_000_000)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    loop.run_until_complete(finish())
    theirs.close()
    loop.close()


@pytest.mark.usefixtures("no_fd_left")
@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored")
def test_a_collection_in_another_thread_disturbs_no_connection(
    new_loop: Callable[[], Loop],
) -> None:
    class StaysOpen(Recorder):
        def eof_received(self) -> bool:
            return True

    async def start() -> Recorder:
        await loop.create_connection(StaysOpen, sock=forgotten.pop())
        _, protocol = await loop.create_connection(Recorder, sock=ours)
        protocol.transport.write(b"x" * 3_000_000)
        forgotten_peer.shutdown(socket.SHUT_WR)
        await settle()
        return protocol

    async def finish() -> int:
        left = 3_000_000
        while left and (data := await loop.sock_recv(theirs, 1_000_000)):
            left -= len(data)
        protocol.transport.close()
        assert await protocol.lost is None
        return left

    loop = new_loop()
    ours, theirs = connected_sockets()
    forgotten_socket, forgotten_peer = connected_sockets()
    forgotten = [forgotten_socket]
    protocol = loop.run_until_complete(start())
    del forgotten_socket
    collector = threading.Thread(target=gc.collect)
    collector.start()
    collector.join()
    assert loop.run_until_complete(finish()) == 0
    for sock in (theirs, forgotten_peer):
        sock.close()
    loop.close()
    gc.collect()


@pytest.mark.usefixtures("no_fd_left")
@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")
def test_a_transport_cannot_be_closed_after_its_loop(new_loop: Callable[[], Loop]) -> None:
    loop = new_loop()
    ours, theirs = connected_sockets()
    transport, _ = loop.run_until_complete(loop.create_connection(Recorder, sock=ours))
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        transport.close()
    theirs.close()
    ours.close()
    del transport
    gc.collect()


async def test_a_reader_whose_handle_is_cancelled_is_silent(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        calls: list[int] = []
        handle = loop._add_reader(ours.fileno(), calls.append, 1)  # type: ignore[attr-defined]
        handle.cancel()
        theirs.send(b"x")
        before = time.process_time()
        await asyncio.sleep(0.2)
        assert time.process_time() - before < 0.05  # a loop that goes round and round takes it all
        assert calls == []
        loop.remove_reader(ours)


async def test_a_callback_that_adds_a_reader_when_it_is_released(loop: Loop) -> None:
    ours, theirs = socket.socketpair()

    class Callback:
        def __call__(self) -> None:
            pass

        def __del__(self) -> None:
            if not ours._closed:  # type: ignore[attr-defined]
                loop.add_reader(ours, calls.append, 2)

    with ours, theirs:
        calls: list[int] = []
        loop.add_reader(ours, Callback())
        loop.add_reader(ours, calls.append, 1)
        gc.collect()
        loop.remove_reader(ours)
        theirs.send(b"x")
        await settle()
        assert calls == []


DAEMON = """
import threading
import time

def run():
    loop = new_event_loop()
    def spin():
        end = time.monotonic() + 0.02
        while time.monotonic() < end:
            pass
        loop.call_soon(spin)
        started.set()
    loop.call_soon(spin)
    loop.run_forever()

started = threading.Event()
threading.Thread(target=run, daemon=True).start()
started.wait()
"""


def test_the_process_can_end_while_a_daemon_thread_runs_a_loop(start_child: StartChild) -> None:
    for _ in range(3):
        child = start_child(DAEMON)
        assert child.communicate(timeout=LIMIT)[1] == ""
        assert child.returncode == 0


CROSSED = """
import gc
gc.set_threshold(1)

async def echo(reader, writer):
    while data := await reader.read(100):
        writer.write(data)
    writer.close()

async def ask(address, number):
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"%d" % number)
    assert await reader.readexactly(len(b"%d" % number)) == b"%d" % number
    writer.close()
    await writer.wait_closed()

async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    await asyncio.gather(*(ask(address, number) for number in range(50)))
    server.close()
    await server.wait_closed()

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""


def test_collections_at_every_allocation_break_nothing(start_child: StartChild) -> None:
    child = start_child(CROSSED)
    assert child.communicate(timeout=LIMIT)[1] == ""
    assert child.returncode == 0


def test_native_instances_are_no_larger_than_what_they_hold() -> None:
    types = {name: value for name, value in vars(_kloop).items() if isinstance(value, type)}
    assert len(types) > 10
    assert max(made.__basicsize__ for made in types.values()) < 1024
