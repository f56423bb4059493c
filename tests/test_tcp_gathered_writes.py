"""Several writes in one callback: they may go out together, and everything else is as if not."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from support import ErrorLog, Link, Recorder, StartChild, linked

Loop = asyncio.AbstractEventLoop


@asynccontextmanager
async def gathering() -> AsyncIterator[Link[Recorder]]:
    """A connection that was written to more than once in a callback."""
    async with linked(Recorder) as link:
        link.transport.write(b"a")
        link.transport.write(b"b")
        await asyncio.sleep(0)
        link.transport.write(b"c")
        link.transport.write(b"d")
        assert await link.receive(4) == b"abcd"
        yield link


async def test_they_arrive_in_order_and_whatever_their_type(loop: Loop) -> None:
    async with gathering() as link:
        changed = bytearray(b"3")
        link.transport.write(b"1")
        link.transport.write(memoryview(b"2"))
        link.transport.write(changed)
        changed[:] = b"!"
        link.transport.write(b"4")
        link.transport.writelines([b"5", bytearray(b"6")])
        link.transport.write(b"7")
        link.transport.write(b"8" * 100_000)
        link.transport.write(b"9")
        assert await link.receive(100_008) == b"1234567" + b"8" * 100_000 + b"9"


async def test_a_single_write_arrives_while_its_callback_runs_on(loop: Loop) -> None:
    async with linked(Recorder) as link:
        link.peer.settimeout(20)
        link.transport.write(b"alone")
        assert link.peer.recv(10) == b"alone"


async def test_single_writes_are_sent_at_once_again(loop: Loop) -> None:
    async with gathering() as link:
        link.transport.write(b"alone")
        assert await link.receive(5) == b"alone"
        link.peer.settimeout(20)
        link.transport.write(b"once more")
        assert link.peer.recv(10) == b"once more"


async def test_the_buffer_is_empty_where_the_kernel_takes_all(loop: Loop) -> None:
    async with gathering() as link:
        for _ in range(3):
            link.transport.write(b"x")
            assert link.transport.get_write_buffer_size() == 0
        assert await link.receive(3) == b"xxx"


@pytest.mark.parametrize("end", ["close", "abort", "write_eof"])
async def test_what_was_written_before_the_end_arrives(loop: Loop, end: str) -> None:
    async with gathering() as link:
        link.transport.write(b"last")
        link.transport.write(b" words")
        getattr(link.transport, end)()
        assert await link.receive_all() == b"last words"


async def test_a_program_that_writes_to_the_socket_itself_comes_after(loop: Loop) -> None:
    async with gathering() as link:
        link.transport.write(b"first, ")
        sock: socket.socket = link.transport.get_extra_info("socket")
        with socket.socket(fileno=sock.dup().detach()) as copy:
            copy.send(b"second")
        assert await link.receive(13) == b"first, second"


async def test_an_exception_in_the_callback_does_not_hold_them_up(
    loop: Loop, errors: ErrorLog
) -> None:
    def callback(link: Link[Recorder]) -> None:
        link.transport.write(b"be")
        link.transport.write(b"fore")
        raise ZeroDivisionError

    async with gathering() as link:
        loop.call_soon(callback, link)
        assert await link.receive(6) == b"before"
        assert isinstance(errors.take()["exception"], ZeroDivisionError)


def test_they_are_sent_before_the_loop_stops(new_loop: Callable[[], Loop]) -> None:
    async def start() -> tuple[asyncio.Transport, socket.socket]:
        ours, peer = socket.socketpair()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        transport.write(b"a")
        transport.write(b"b")
        return transport, peer

    def finish() -> None:
        transport.write(b"c")
        transport.write(b"d")
        loop.stop()

    loop = new_loop()
    transport, peer = loop.run_until_complete(start())
    loop.call_soon(finish)
    loop.run_forever()
    transport.write(b"e")
    with peer:
        peer.settimeout(20)
        assert peer.recv(100) == b"abcde"
    transport.close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


async def test_a_lost_connection_is_noticed(loop: Loop) -> None:
    async with gathering() as link:
        link.transport.pause_reading()
        link.reset()
        link.transport.write(b"x")
        link.transport.write(b"y")
        link.transport.get_write_buffer_size()
        assert link.transport.is_closing()
        assert isinstance(await link.protocol.lost, ConnectionError)


FORK = """
import os, socket, warnings

async def main():
    ours, peer = socket.socketpair()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)

    def write_and_fork():
        transport.write(b"a")
        transport.write(b"b")
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            pid = os.fork()
        if pid == 0:
            raise SystemExit
        os.waitpid(pid, 0)

    loop.call_soon(write_and_fork)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    transport.close()
    await asyncio.sleep(0)
    with peer.makefile() as file:
        print(file.read(), flush=True)

asyncio.Runner(loop_factory=new_event_loop).run(main())
"""


@pytest.mark.parametrize("loop_name", ["kloop"])
def test_a_forked_child_does_not_send_them_again(start_child: StartChild) -> None:
    child = start_child(FORK)
    output, errors = child.communicate(timeout=20)
    assert output == "ab\n", errors
