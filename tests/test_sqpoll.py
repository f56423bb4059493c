"""sqpoll: when a kernel thread submits for a loop, where, who shares it, and that it sleeps."""

import asyncio
import contextlib
import gc
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import kloop
import sandbox
from kloop.sqpoll import IDLE_MS
from support import LOCALHOST, StartChild, in_thread, wait_until_blocked

LIMIT = 10.0
"""Seconds for anything that has to happen."""

CPUS = sorted(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def on_io_uring(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.environ.get("KLOOP_DRIVER") == "epoll":
        pytest.skip("sqpoll needs io_uring")


@pytest.fixture
def loop_name() -> str:
    return "kloop"


@pytest.fixture
def cpu() -> Iterator[int]:
    """The CPU that this thread is pinned to for the test."""
    if len(CPUS) < 2 and "CI" not in os.environ:
        pytest.skip("there is one CPU only")
    os.sched_setaffinity(0, CPUS[:1])
    yield CPUS[0]
    os.sched_setaffinity(0, CPUS)


def pollers() -> dict[int, str]:
    """The kernel threads of this process that poll, by their ids."""
    found = {}
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/self/task/{task}/comm") as file:
            name = file.read().strip()
            if name.startswith("iou-sqp-"):
                found[int(task)] = name
    return found


def new_poller(before: dict[int, str]) -> int:
    """The one that came since."""
    limit = time.monotonic() + LIMIT
    while not (new := pollers().keys() - before.keys()):
        assert time.monotonic() < limit, "there is no poller"  # it names itself once it runs
        time.sleep(0.001)
    [thread] = new
    return thread


def wait_until_gone(thread: int) -> None:
    limit = time.monotonic() + LIMIT
    while thread in pollers():
        assert time.monotonic() < limit, "the poller does not end"
        time.sleep(0.002)


def cpu_seconds(thread: int) -> float:
    with open(f"/proc/self/task/{thread}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


Streams = tuple[asyncio.Server, asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.contextmanager
def new_loop(sqpoll: Any) -> Iterator[kloop.Loop]:
    with contextlib.closing(kloop.new_event_loop(sqpoll=sqpoll)) as loop:
        yield loop


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()


async def converse(size: int = 100_000) -> None:
    server = await asyncio.start_server(echo, LOCALHOST, 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"x" * size)
        assert await reader.readexactly(size) == b"x" * size
        writer.close()
        await writer.wait_closed()


# What is asked for, and what comes of it


def test_it_is_off_unless_asked_for() -> None:
    before = pollers()
    with contextlib.closing(kloop.new_event_loop()) as loop:
        assert loop.sqpoll == kloop.SqPoll(False, None, None, "not asked for")
    with new_loop(False) as loop:
        assert not loop.sqpoll.active
    assert pollers() == before


@pytest.mark.parametrize(("sqpoll", "idle_ms"), [(True, IDLE_MS), (1, 1), (20, 20)])
def test_it_can_be_asked_for(sqpoll: Any, idle_ms: int) -> None:
    before = pollers()
    with new_loop(sqpoll) as loop:
        assert loop.sqpoll.active
        assert loop.sqpoll.idle_ms == idle_ms
        assert loop.sqpoll.reason.startswith("asked for; on any CPU: ")
        thread = new_poller(before)
        loop.run_until_complete(converse())
    wait_until_gone(thread)


def test_run_takes_it() -> None:
    async def main() -> kloop.SqPoll:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, kloop.Loop)
        await converse()
        return loop.sqpoll

    assert kloop.run(main(), sqpoll=7).idle_ms == 7
    assert kloop.run(main(), sqpoll="auto").active is False
    assert kloop.run(main()).active is False


@pytest.mark.parametrize(
    ("sqpoll", "error", "text"),
    [
        ("on", ValueError, """sqpoll must be "auto", a bool or milliseconds, not 'on'"""),
        (0, ValueError, "sqpoll must be at least 1 millisecond, not 0"),
        (-5, ValueError, "sqpoll must be at least 1 millisecond, not -5"),
        (1 << 40, ValueError, "sqpoll must be at most "),
        (0.5, TypeError, 'sqpoll must be "auto", a bool or an int of milliseconds, not float'),
        (None, TypeError, 'sqpoll must be "auto", a bool or an int of milliseconds, not NoneType'),
    ],
)
def test_other_values_are_refused(sqpoll: Any, error: type[Exception], text: str) -> None:
    for make in (
        lambda: kloop.Loop(sqpoll=sqpoll),
        lambda: kloop.new_event_loop(sqpoll=sqpoll),
        lambda: kloop.serve_per_core(asyncio.Protocol, port=0, sqpoll=sqpoll),
    ):
        with pytest.raises(error) as caught:
            make()
        assert str(caught.value).startswith(text)
    gc.collect()  # no warning of a loop that was not closed


def test_auto_is_off_where_no_cpu_is_known_to_be_spare() -> None:
    if len(CPUS) < 2 and "CI" not in os.environ:
        pytest.skip("there is one CPU only")
    with new_loop("auto") as loop:
        assert not loop.sqpoll.active
        assert "not pinned" in loop.sqpoll.reason


def test_auto_is_off_where_the_main_thread_is_pinned_too(cpu: int) -> None:
    with new_loop("auto") as loop:
        assert not loop.sqpoll.active
        assert "may use no other" in loop.sqpoll.reason


@pytest.mark.parametrize("sqpoll", ["auto", True])
def test_a_pinned_thread_leaves_the_others_to_the_poller(sqpoll: Any) -> None:
    if len(CPUS) < 2 and "CI" not in os.environ:
        pytest.skip("there is one CPU only")

    def work() -> None:
        before = pollers()
        os.sched_setaffinity(0, CPUS[:1])
        with new_loop(sqpoll) as loop:
            assert loop.sqpoll.active
            assert loop.sqpoll.cpu == CPUS[-1]
            assert "spare" in loop.sqpoll.reason
            thread = new_poller(before)
            assert os.sched_getaffinity(thread) == {CPUS[-1]}
            loop.run_until_complete(converse())
        wait_until_gone(thread)

    with in_thread(work):
        pass


def test_epoll_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLOOP_DRIVER", "epoll")
    with pytest.raises(RuntimeError, match="sqpoll needs io_uring, and this loop runs on epoll"):
        kloop.new_event_loop(sqpoll=True)
    with new_loop("auto") as loop:
        assert not loop.sqpoll.active


def test_a_kernel_that_refuses(start_child: StartChild) -> None:
    if not sandbox.is_available():
        pytest.skip("seccomp filters cannot be installed")
    script = """
import os, sys
sys.path.insert(0, os.environ["HELPERS"])
import errno, sandbox, kloop
from kloop.sqpoll import Plan
loop = kloop.Loop()
sandbox.deny_io_uring(errno.EPERM, "setup")
def attempt(required):
    return loop._start_poller(Plan(True, required, None, 4, "auto: CPU 1 is spare"))
print(attempt(False))
try:
    attempt(True)
except OSError as error:
    print(error)
loop.run_until_complete(asyncio.sleep(0))
loop.close()
"""
    environment = {**os.environ, "HELPERS": os.path.dirname(__file__)}
    output, errors = start_child(script, env=environment).communicate(timeout=LIMIT)
    assert errors == ""
    first, second = output.splitlines()
    assert first.startswith("SqPoll(active=False, cpu=None, idle_ms=None, reason='auto: CPU 1 is ")
    assert "io_uring_setup(IORING_SETUP_SQPOLL): Operation not permitted" in first
    assert "io_uring_setup(IORING_SETUP_SQPOLL): Operation not permitted" in second


# The poller


def test_a_poller_without_work_sleeps() -> None:
    before = pollers()
    with new_loop(True) as loop:
        thread = new_poller(before)
        loop.run_until_complete(converse())
        wait_until_blocked(thread)
        used = cpu_seconds(thread)
        loop.run_until_complete(asyncio.sleep(1))
        assert cpu_seconds(thread) - used <= 0.05
        # And wakes up again.
        loop.run_until_complete(converse())


def test_a_loop_without_work_sleeps() -> None:
    with new_loop(True) as loop:
        loop.run_until_complete(converse())
        used = time.thread_time()
        loop.run_until_complete(asyncio.sleep(0.5))
        assert time.thread_time() - used <= 0.05


def test_loops_that_ask_for_the_same_share_a_poller() -> None:
    before = pollers()
    with new_loop(True) as first:
        thread = new_poller(before)

        def work() -> None:
            with new_loop(True) as second:
                assert new_poller(before) == thread
                second.run_until_complete(converse())

        with in_thread(work):
            first.run_until_complete(converse())
        with new_loop(IDLE_MS + 1):
            assert new_poller({**before, thread: ""}) != thread
        first.run_until_complete(converse())
    wait_until_gone(thread)


def test_a_poller_outlives_the_loop_that_was_first() -> None:
    before = pollers()
    with contextlib.ExitStack() as stack:
        made, over = threading.Event(), threading.Event()

        def be_first() -> None:
            with new_loop(True):
                made.set()
                over.wait(LIMIT)

        with in_thread(be_first):
            assert made.wait(LIMIT)
            thread = new_poller(before)
            second = stack.enter_context(new_loop(True))
            over.set()
        second.run_until_complete(converse())
        third = stack.enter_context(new_loop(True))
        assert new_poller(before) == thread
        third.run_until_complete(converse())


# What goes through the ring


def segments_sent(sock: socket.socket) -> int:
    """Segments with data, tcpi_data_segs_out of struct tcp_info in linux/tcp.h."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 200)
    return int(struct.unpack_from("=I", info, 156)[0])


def test_what_one_callback_writes_is_sent_at_once() -> None:
    with new_loop(True) as loop, pair() as (ours, theirs):

        async def main() -> None:
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
            for count in (1, 2):
                for part in (b"head", b" and ", b"body"):
                    transport.write(part)
                transport.writelines([b", and", b" more"])
                while transport.get_write_buffer_size():
                    await asyncio.sleep(0)
                assert segments_sent(ours) == count
            assert theirs.recv(100, socket.MSG_WAITALL | socket.MSG_DONTWAIT).count(b"head") == 2
            transport.close()
            await asyncio.sleep(0)

        loop.run_until_complete(main())


def test_nothing_overtakes_what_a_slow_poller_has_received(cpu: int) -> None:
    """The poller shares the loop's CPU, so that it falls behind."""
    sent = b"".join(struct.pack(">I", number) for number in range(200_000))
    delays = random.Random(1)

    class Hesitant(asyncio.BufferedProtocol):
        transport: asyncio.Transport

        def __init__(self) -> None:
            self.room = bytearray(1500)
            self.data = bytearray()

        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def get_buffer(self, sizehint: int) -> bytearray:
            return self.room

        def buffer_updated(self, count: int) -> None:
            self.data += self.room[:count]
            self.transport.pause_reading()
            self.resume_after(delays.choice((1, 1, 2, 3, 8)))

        def resume_after(self, turns: int) -> None:
            if turns:
                asyncio.get_running_loop().call_soon(self.resume_after, turns - 1)
            else:
                self.transport.resume_reading()

    def send(sock: socket.socket) -> None:
        os.sched_setaffinity(0, CPUS[1:])
        for start in range(0, len(sent), 2000):
            sock.sendall(sent[start : start + 2000])

    with new_loop(False) as loop, pair() as (ours, theirs):
        loop._open_ring(idle=1, cpu=cpu)

        async def main() -> None:
            transport, protocol = await loop.create_connection(Hesitant, sock=ours)
            with in_thread(lambda: send(theirs)):
                while len(protocol.data) < len(sent):
                    await asyncio.sleep(0)
            transport.abort()
            await asyncio.sleep(0)
            assert protocol.data == sent

        loop.run_until_complete(asyncio.wait_for(main(), LIMIT))


# Loops and threads


def test_a_loop_moves_to_another_thread_and_loses_nothing() -> None:
    """What a ring has received is in no socket any more."""

    async def start() -> Streams:
        server = await asyncio.start_server(echo, LOCALHOST, 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"x" * 1_000_000)
        assert await reader.readexactly(10) == b"x" * 10
        return server, reader, writer

    async def go_on(
        server: asyncio.Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        assert await reader.readexactly(999_990) == b"x" * 999_990
        writer.write(b"more")
        assert await reader.readexactly(4) == b"more"
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    made: list[kloop.Loop] = []
    thread = threading.Thread(target=lambda: made.append(kloop.new_event_loop(sqpoll=True)))
    thread.start()
    thread.join()
    [loop] = made
    streams = loop.run_until_complete(start())
    with in_thread(lambda: loop.run_until_complete(go_on(*streams))):
        pass
    loop.close()


def test_what_was_written_is_sent_though_the_loop_is_closed() -> None:
    with contextlib.ExitStack() as stack:
        loop = stack.enter_context(new_loop(True))
        ours, theirs = stack.enter_context(pair())
        theirs.settimeout(LIMIT)

        async def write() -> asyncio.Transport:
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
            transport.write(b"the last words")
            return transport

        transport = loop.run_until_complete(write())
        assert theirs.recv(100) == b"the last words"
        transport.write(b"and more")
        transport.abort()
        loop.run_until_complete(asyncio.sleep(0))


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server((LOCALHOST, 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours = listener.accept()[0]
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


@pytest.mark.parametrize("end", ["abort", "shutdown", "send"])
def test_what_a_callback_wrote_is_sent_before_it_ends_the_connection(end: str) -> None:
    with new_loop(True) as loop, pair() as (ours, theirs):

        async def main() -> None:
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
            transport.write(b"good")
            transport.write(b"bye")
            if end == "abort":
                transport.abort()
            elif end == "shutdown":
                transport.get_extra_info("socket").shutdown(socket.SHUT_WR)
            else:
                transport.get_extra_info("socket")._sock.send(b"!")
            transport.close()
            await asyncio.sleep(0)

        loop.run_until_complete(main())
        theirs.settimeout(LIMIT)
        with theirs.makefile("rb") as file:
            assert file.read() == (b"goodbye!" if end == "send" else b"goodbye")
