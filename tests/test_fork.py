"""A forked child and its parent's loop: the child must not disturb it, and is told if it tries."""

import os
from collections.abc import Callable

import pytest

from support import StartChild

LIMIT = 20.0
"""Seconds that a child process may take."""

BELONGS = "this event loop belongs to the parent process; make a new one in the child"

PRELUDE = """
import gc
import os
import socket
import sys
import threading
import traceback
import warnings

def in_child(function, *arguments):
    "Run the function in a forked child, which must end well."
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of threads
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function(*arguments)
            gc.collect()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert status == 0

async def echo(reader, writer):
    while data := await reader.read(100):
        writer.write(data)
    writer.close()

async def ask(reader, writer):
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"

async def converse(address):
    reader, writer = await asyncio.open_connection(*address)
    await ask(reader, writer)
    writer.close()
    await writer.wait_closed()
"""

Run = Callable[[str], str]

# A child shares the epoll instance of asyncio's loop, and may use it.
only_kloop = pytest.mark.parametrize("loop_name", ["kloop"])


@pytest.fixture
def run(start_child: StartChild) -> Run:
    """Runs a script after the prelude and returns what it prints; it must not complain."""

    def run(script: str) -> str:
        environment = {**os.environ, "PYTHONDEVMODE": "1", "PYTHONWARNINGS": "always"}
        child = start_child(PRELUDE + script, env=environment)
        output, complaints = child.communicate(timeout=LIMIT)
        assert complaints == ""
        assert child.returncode == 0
        return output

    return run


# A loop of its own


def test_a_child_of_an_idle_loop_makes_a_loop_of_its_own(run: Run) -> None:
    run("""
def child():
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve())

async def serve():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        await converse(server.sockets[0].getsockname())

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(serve())
    in_child(child)
    runner.run(serve())
""")


def test_a_child_made_in_a_coroutine_makes_a_loop_of_its_own(run: Run) -> None:
    run("""
def child():
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve())

async def serve():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        await converse(server.sockets[0].getsockname())
        return server

async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        in_child(child)
        await converse(server.sockets[0].getsockname())

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
""")


def test_multiprocessing_forks_in_a_coroutine(run: Run) -> None:
    run("""
import multiprocessing

async def nothing():
    await asyncio.sleep(0.01)

def child():
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(nothing())

async def main():
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    await asyncio.to_thread(process.join)
    assert process.exitcode == 0
    process.close()

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
""")


# The parent's loop


@only_kloop
def test_what_needs_the_parents_loop_is_refused(run: Run) -> None:
    output = run("""
async def nothing():
    pass

def child():
    def refused(function, *arguments):
        try:
            function(*arguments)
        except RuntimeError as error:
            print(error)
        else:
            print(function, "was not refused")

    assert loop.is_closed()
    assert not loop.is_running()
    coroutine = nothing()
    refused(loop.run_forever)
    refused(loop.run_until_complete, future)
    refused(loop.call_soon, print)
    refused(loop.call_later, 0, print)
    refused(loop.call_soon_threadsafe, print)
    refused(loop.create_task, coroutine)
    refused(loop.run_in_executor, None, print)
    refused(loop.add_reader, theirs, print)
    refused(loop.add_writer, theirs, print)
    refused(writer.write, b"x" * 10_000_000)
    refused(writer.transport.abort)
    refused(asyncio.run_coroutine_threadsafe, coroutine, loop)
    coroutine.close()

ours, theirs = socket.socketpair()
ours.setblocking(False)
loop = new_event_loop()
future = loop.create_future()
reader, writer = loop.run_until_complete(asyncio.open_connection(sock=ours))
in_child(child)
writer.close()
loop.run_until_complete(writer.wait_closed())
loop.close()
theirs.close()
""")
    assert output.splitlines() == [BELONGS] * 12


@only_kloop
def test_a_child_that_goes_on_with_its_parents_coroutine(start_child: StartChild) -> None:
    child = start_child(
        PRELUDE
        + """
async def main():
    asyncio.get_running_loop().call_soon(print, "callback")
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    return "main"

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    print(runner.run(main()))
"""
    )
    output, complaints = child.communicate(timeout=LIMIT)
    assert child.returncode == 0
    # The parent's, of which the child runs nothing.
    assert output.splitlines() == ["callback", "main"]
    assert f"RuntimeError: {BELONGS}" in complaints.splitlines()


@pytest.mark.parametrize("end", ["loop.close()", "del loop", "loop.close(); loop.close()"])
@only_kloop
def test_a_child_may_close_or_drop_its_parents_loop(run: Run, end: str) -> None:
    run(f"""
def child():
    global loop, server, reader, writer, task
    server.close()
    server = reader = writer = task = None
    {end}
    gc.collect()

async def start():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    return address, server, *await asyncio.open_connection(*address)

async def end():
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    task.cancel()
    ours.close()
    theirs.close()

# These are not the loop's.
for message in "unclosed <socket", "unclosed <StreamWriter", "loop is closed":
    warnings.filterwarnings("ignore", message)
ours, theirs = socket.socketpair()
ours.setblocking(False)
theirs.setblocking(False)
loop = new_event_loop()
address, server, reader, writer = loop.run_until_complete(start())
loop.add_signal_handler(10, print)
loop.add_reader(ours, ours.recv, 10)
loop.call_later(1000, print)
task = loop.create_task(asyncio.sleep(1000))
loop.run_until_complete(ask(reader, writer))
in_child(child)
loop.run_until_complete(ask(reader, writer))
loop.run_until_complete(converse(address))
theirs.send(b"x")
loop.run_until_complete(converse(address))
try:
    ours.recv(1)
except BlockingIOError:
    loop.remove_reader(ours)
else:
    raise AssertionError("the reader was not called")
loop.run_until_complete(end())
loop.close()
""")


@pytest.mark.parametrize("end", ["loop.close()", "pass"])
@only_kloop
def test_a_child_of_a_process_whose_loop_runs_in_a_thread(run: Run, end: str) -> None:
    run(f"""
def child():
    try:
        asyncio.run_coroutine_threadsafe(converse(address), loop)
    except RuntimeError as error:
        assert "belongs to the parent" in str(error)
    else:
        raise AssertionError("the loop took it")
    {end}
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(converse(address))

def in_loop(coroutine):
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result(10)

warnings.filterwarnings("ignore", "coroutine 'converse' was never awaited")
loop = new_event_loop()
thread = threading.Thread(target=loop.run_forever)
thread.start()
server = in_loop(asyncio.start_server(echo, "127.0.0.1", 0))
address = server.sockets[0].getsockname()
for _ in range(3):
    in_child(child)
    in_loop(converse(address))
loop.call_soon_threadsafe(server.close)
in_loop(server.wait_closed())
loop.call_soon_threadsafe(loop.stop)
thread.join()
loop.close()
""")


@only_kloop
def test_a_child_that_outlives_its_parents_connections(run: Run) -> None:
    """It holds copies of their descriptors, and of what the loop waits with."""
    run("""
async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    reader, writer = await asyncio.open_connection(*address)
    await ask(reader, writer)
    holding, released = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(released)
        os.read(holding, 1)
        os._exit(0)
    writer.close()
    for _ in range(10):  # the same numbers again
        await converse(address)
    turns = 0
    def count():
        nonlocal turns
        turns += 1
    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop = asyncio.get_running_loop()
        loop.add_reader(ours, count)
        await asyncio.sleep(0.05)
        loop.remove_reader(ours)
    assert turns == 0
    os.close(released)
    os.waitpid(pid, 0)
    os.close(holding)
    server.close()
    await server.wait_closed()

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
""")


@only_kloop
def test_a_child_that_uses_its_parents_transport(run: Run) -> None:
    output = run("""
async def main():
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    writer.write(b"before")
    pid = os.fork()
    if pid == 0:
        try:
            writer.write(b"C" * 5_000_000)
        except RuntimeError as error:
            print(error, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    theirs.setblocking(False)
    received = bytearray()
    try:
        while True:
            received += theirs.recv(1_000_000)
    except BlockingIOError:
        pass
    assert set(received) <= set(b"beforeC"), "memory of the parent was sent"
    theirs.sendall(b"after")
    assert await reader.readexactly(5) == b"after"
    writer.close()
    await writer.wait_closed()
    theirs.close()

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
""")
    assert output.splitlines() == [BELONGS]
