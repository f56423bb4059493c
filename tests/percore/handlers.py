"""Handlers that the workers import, and what the tests have them do."""

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import itertools
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import kloop

EXIT_STATUS = 3

# Connections


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


class Echo(asyncio.Protocol):
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class BufferedEcho(asyncio.BufferedProtocol):
    transport: asyncio.Transport

    def __init__(self) -> None:
        self.buffer = bytearray(4096)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self.buffer[:nbytes]))


def make_echo() -> Echo:
    return Echo()


class Nested:
    alias = Echo

    class Inner(Echo):
        pass

    def method(self) -> Echo:
        return Echo()


@functools.cache
def cached() -> Echo:
    raise AssertionError("is not called")


not_callable = 1


class Failing:
    """A handler that fails at every connection's first byte b"!", and echoes all others."""

    @staticmethod
    async def streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            if data == b"!":
                raise LookupError("the handler fails")
            writer.write(data)
        writer.close()

    class Protocol(Echo):
        def data_received(self, data: bytes) -> None:
            if data == b"!":
                raise LookupError("the protocol fails")
            self.transport.write(data)


def makes_no_protocol() -> None:
    """A protocol factory that forgets to return the protocol."""


_made = itertools.count()


def every_other_fails() -> Echo:
    """A protocol factory that fails at this core's first connection, and each second after it."""
    if next(_made) % 2 == 0:
        raise LookupError("the factory fails")
    return Echo()


def fails_on_core_1() -> Echo:
    if kloop.current_core().index == 1:
        raise LookupError("the factory fails")
    return Echo()


served = 0
"""Connections of this core to the two that follow."""


class MixedEcho(Echo):
    """An echo; but a client that begins with b"[" speaks with calls()."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        global served
        served += 1
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"["):
            reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(reader, calls)
            self.transport.set_protocol(protocol)
            protocol.connection_made(self.transport)
            protocol.data_received(data)
        else:
            self.transport.write(data)


async def mixed_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As MixedEcho, with streams."""
    global served
    served += 1
    try:
        first = await reader.read(65536)
        if first.startswith(b"["):
            reader.feed_data(first)
            await calls(reader, writer)
        else:
            writer.write(first)
            await echo(reader, writer)
    except ConnectionError:
        pass
    finally:
        writer.close()
        # Takes the exception of a connection that was reset: asyncio may report it otherwise.
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


# Functions that a test calls in a worker

Function = Callable[..., Awaitable[Any]]
functions: dict[str, Function] = {}
live = 0
"""Connections of this core to calls()."""

here: contextvars.ContextVar[str] = contextvars.ContextVar("here", default="nowhere")


def function(made: Function) -> Function:
    functions[made.__name__] = made
    return made


async def calls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Runs the functions that a client names, with arguments, as lines of JSON."""
    global live
    live += 1
    try:
        while line := await reader.readline():
            name, *arguments = json.loads(line)
            try:
                reply = ["result", await functions[name](*arguments)]
            except Exception as error:
                reply = ["error", repr(error)]
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
    finally:
        live -= 1
        writer.close()


@function
async def core() -> dict[str, int]:
    return dataclasses.asdict(kloop.current_core())


@function
async def open_connections() -> int:
    return live


@function
async def connections_served() -> int:
    return served


@function
async def affinity() -> list[int]:
    """The CPUs that this core's thread may run on."""
    return sorted(os.sched_getaffinity(0))


@function
async def thread_names() -> list[str]:
    return [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]


@function
async def process() -> dict[str, Any]:
    return {"pid": os.getpid(), "argv": sys.argv, "path": sys.path}


@function
async def loop_stats() -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, kloop.Loop)
    return dict(loop.stats())


@function
async def driver() -> str:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, kloop.Loop)
    return loop.driver


@function
async def sqpoll() -> list[Any]:
    """What came of the option, and the process's pollers with their CPUs."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, kloop.Loop)
    found = {}
    for task in os.listdir("/proc/self/task"):
        if Path(f"/proc/self/task/{task}/comm").read_text().startswith("iou-sqp-"):
            found[task] = sorted(os.sched_getaffinity(int(task)))
    return [list(loop.sqpoll), found]


@function
async def debug() -> bool:
    return asyncio.get_running_loop().get_debug()


@function
async def block() -> None:
    """Never ends by itself."""
    await asyncio.Event().wait()


@function
async def refuse_to_end(_: str) -> NoReturn:
    """Never ends, cancelled or not."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass


_gates: dict[str, asyncio.Event] = {}


@function
async def wait_at_gate(name: str) -> str:
    await _gates.setdefault(name, asyncio.Event()).wait()
    return "through"


@function
async def open_gate(name: str) -> None:
    _gates.setdefault(name, asyncio.Event()).set()


@function
async def exit_worker() -> NoReturn:
    sys.exit(EXIT_STATUS)


@function
async def stop_loop() -> None:
    asyncio.get_running_loop().stop()
    await asyncio.Event().wait()


@function
async def block_thread(path: str) -> None:
    """Blocks the worker's thread until somebody writes to a FIFO."""
    with open(path) as fifo:
        fifo.read()


@function
async def task_groups_and_contexts() -> list[str]:
    here.set("outside")

    async def inner(name: str) -> str:
        before = here.get()
        here.set(name)
        await asyncio.sleep(0)
        return f"{before}, {here.get()}"

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        tasks = [group.create_task(inner(name)) for name in ("one", "two")]
    return [*(task.result() for task in tasks), here.get()]


@function
async def context() -> str:
    return here.get()


@function
async def executors() -> list[Any]:
    loop = asyncio.get_running_loop()
    here.set("in a thread")
    with ThreadPoolExecutor(1) as pool:
        own = await loop.run_in_executor(pool, threading.get_ident)
    return [
        await asyncio.to_thread(here.get),
        await loop.run_in_executor(None, sum, [1, 2, 3]),
        own != threading.get_ident(),
    ]


@function
async def subprocesses() -> list[Any]:
    shell = await asyncio.create_subprocess_shell(
        "cat; exit 7", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await shell.communicate(b"through a pipe")
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "print(1 + 1)", stdout=asyncio.subprocess.PIPE
    )
    result, _ = await program.communicate()
    return [output.decode(), shell.returncode, result.decode(), program.returncode]


@function
async def many_subprocesses(count: int) -> list[int | None]:
    async def run(number: int) -> int | None:
        process = await asyncio.create_subprocess_shell(
            f"cat; exit {number}", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        data = b"%d" % number * 50_000
        assert (await process.communicate(data))[0] == data
        return process.returncode

    return await asyncio.gather(*map(run, range(count)))


@function
async def killed_subprocess() -> int:
    process = await asyncio.create_subprocess_exec("sleep", "100")
    process.terminate()
    return await process.wait()


@function
async def preexec_fn() -> str:
    try:
        process = await asyncio.create_subprocess_exec("true", preexec_fn=print)
    except RuntimeError as error:
        return str(error)
    return str(await process.wait())


@function
async def subprocess_without_pidfd() -> list[Any]:
    def refuse(pid: int, flags: int = 0) -> int:
        raise PermissionError(1, "Operation not permitted")

    original, os.pidfd_open = os.pidfd_open, refuse
    try:
        process = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE)
    finally:
        os.pidfd_open = original
    waits = [thread for thread in threading.enumerate() if "wait" in thread.name]
    assert process.stdin is not None
    process.stdin.close()
    return [len(waits), await process.wait()]


@function
async def tls_client(port: int) -> list[str]:
    from support import client_context

    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=client_context(), server_hostname="localhost"
    )
    writer.write(b"over TLS\n")
    line = await reader.readline()
    version = writer.get_extra_info("ssl_object").version()
    writer.close()
    await writer.wait_closed()
    return [line.decode(), version]


@function
async def tcp_server_and_client() -> str:
    """A server of the worker's own, beside the one of serve_per_core."""
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        writer.write(b"round\n")
        line = await reader.readline()
        writer.close()
        await writer.wait_closed()
    return line.decode()


@function
async def udp_endpoints() -> str:
    """Two endpoints of the worker's own."""
    from datagrams import Echo, endpoint, name

    async with endpoint(Echo) as server, endpoint(remote_addr=name(server)) as client:
        client.transport.sendto(b"round")
        data, address = await client.received.get()
        assert address == name(server)
    return data.decode()


@function
async def resolve() -> list[Any]:
    infos = await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
    return [info[4] for info in infos]


@function
async def add_signal_handlers() -> list[str]:
    loop = asyncio.get_running_loop()
    answers = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        try:
            loop.add_signal_handler(number, loop.stop)
        except RuntimeError as error:
            answers.append(str(error))
        answers.append(str(loop.remove_signal_handler(number)))
    return answers


@function
async def serve_again() -> str:
    try:
        kloop.serve_per_core("handlers:Echo", port=0)
    except RuntimeError as error:
        return str(error)
    return "served"
