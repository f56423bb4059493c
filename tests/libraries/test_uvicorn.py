"""uvicorn on the loop: in a loop of ours, and started as its users start it."""

import asyncio
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import websockets
from applications import CHUNK, Application, uvicorn_server

import certificate
from support import client_context, listener, pattern

HERE = Path(__file__).parent

parsers = pytest.mark.parametrize("parser", ["h11", "httptools"])
websocket_implementations = pytest.mark.parametrize(
    "implementation", ["websockets-sansio", "wsproto"]
)


def client(**options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=20, trust_env=False, **options)


async def until_refused(address: tuple[str, int]) -> None:
    """Return once nobody listens at the address."""
    while True:
        try:
            _, writer = await asyncio.open_connection(*address)
        except ConnectionError:
            return
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@parsers
async def test_connections_are_kept_for_further_requests(
    loop: asyncio.AbstractEventLoop, parser: str
) -> None:
    body = pattern(2_000_000)
    async with uvicorn_server(Application(), http=parser) as server, client() as http:
        for _ in range(20):
            assert (await http.get(server.url("/hello"))).text == "hello"
        assert (await http.post(server.url("/echo"), content=body)).content == body
        assert len(server.server.server_state.connections) == 1


@parsers
async def test_requests_at_the_same_time(loop: asyncio.AbstractEventLoop, parser: str) -> None:
    async with uvicorn_server(Application(), http=parser) as server, client() as http:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(http.post(server.url("/echo"), content=pattern(1000 * number)))
                for number in range(80)
            ]
        for number, task in enumerate(tasks):
            assert task.result().content == pattern(1000 * number)


@parsers
async def test_a_response_streams_while_the_client_reads_slowly(
    loop: asyncio.AbstractEventLoop, parser: str
) -> None:
    count = 200
    async with uvicorn_server(Application(), http=parser) as server:
        reader, writer = await asyncio.open_connection(*server.address, limit=1024)
        writer.write(b"GET /chunks?%d HTTP/1.1\r\nhost: x\r\n\r\n" % count)
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head.lower()
        for _ in range(count):
            assert await reader.readuntil(b"\r\n") == b"%x\r\n" % len(CHUNK)
            assert await reader.readexactly(len(CHUNK)) == CHUNK
            assert await reader.readexactly(2) == b"\r\n"
            await asyncio.sleep(0)
        assert await reader.readexactly(5) == b"0\r\n\r\n"
        writer.close()
        await writer.wait_closed()


@parsers
async def test_pipelined_requests_are_answered_in_order(
    loop: asyncio.AbstractEventLoop, parser: str
) -> None:
    async with uvicorn_server(Application(), http=parser) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        bodies = [b"%d" % number for number in range(50)]
        for body in bodies:
            writer.write(
                b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            )
        for body in bodies:
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readuntil(b"\r\n0\r\n\r\n") == b"%x\r\n%b\r\n0\r\n\r\n" % (
                len(body),
                body,
            )
        writer.close()
        await writer.wait_closed()


@parsers
async def test_the_application_learns_that_its_client_has_gone(
    loop: asyncio.AbstractEventLoop, parser: str
) -> None:
    application = Application()
    async with uvicorn_server(application, http=parser) as server:
        _, writer = await asyncio.open_connection(*server.address)
        writer.write(b"GET /gone HTTP/1.1\r\nhost: x\r\n\r\n")
        await application.waiting.wait()
        writer.close()
        await application.finished.wait()
        await writer.wait_closed()
    assert application.events == ["startup", "http.disconnect", "shutdown"]


@parsers
async def test_an_idle_connection_is_closed_after_the_keep_alive_timeout(
    loop: asyncio.AbstractEventLoop, parser: str
) -> None:
    async with uvicorn_server(Application(), http=parser, timeout_keep_alive=0) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"GET /hello HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await reader.read()).endswith(b"\r\n\r\nhello")
        writer.close()
        await writer.wait_closed()


@parsers
async def test_tls(loop: asyncio.AbstractEventLoop, parser: str) -> None:
    body = pattern(1_000_000)
    with certificate.files() as (chain, key):
        options = {"http": parser, "ssl_certfile": chain, "ssl_keyfile": key}
        async with uvicorn_server(Application(), **options) as server:
            async with client(verify=client_context()) as http:
                for _ in range(5):
                    assert (await http.get(server.url("/hello"))).text == "hello"
                assert (await http.post(server.url("/echo"), content=body)).content == body


@parsers
async def test_unix_socket(loop: asyncio.AbstractEventLoop, parser: str, tmp_path: Path) -> None:
    path = str(tmp_path / "uvicorn.sock")
    server = uvicorn.Server(uvicorn.Config(Application(), uds=path, http=parser, log_config=None))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    async with client(transport=httpx.AsyncHTTPTransport(uds=path)) as http:
        assert (await http.get("http://localhost/hello")).text == "hello"
    server.should_exit = True
    await serving


# WebSocket


@pytest.mark.parametrize(
    ("parser", "implementation"),
    [("h11", "wsproto"), ("h11", "websockets-sansio"), ("httptools", "websockets-sansio")],
)
async def test_websocket_messages(
    loop: asyncio.AbstractEventLoop, parser: str, implementation: str
) -> None:
    large = pattern(700_000)
    async with uvicorn_server(Application(), http=parser, ws=implementation) as server:
        url = server.url(scheme="ws")
        async with websockets.connect(url, max_size=None, proxy=None) as websocket:
            for message in ("text", "ünïcode", b"bytes", b"", large, large.hex()):
                await websocket.send(message)
                assert await websocket.recv() == message
            await websocket.send([b"in ", b"three ", b"fragments"])
            assert await websocket.recv() == b"in three fragments"
            assert await (await websocket.ping()) > 0


@websocket_implementations
async def test_websocket_close_codes(loop: asyncio.AbstractEventLoop, implementation: str) -> None:
    application = Application()
    async with uvicorn_server(application, ws=implementation) as server:
        url = server.url(scheme="ws")
        async with websockets.connect(url, proxy=None) as websocket:
            await websocket.send("close 3001")
            with pytest.raises(websockets.ConnectionClosedError):
                await websocket.recv()
            assert (websocket.close_code, websocket.close_reason) == (3001, "asked")
        async with websockets.connect(url, proxy=None) as websocket:
            await websocket.close(3002)
        await application.finished.wait()
        application.finished.clear()
        async with websockets.connect(url, proxy=None) as websocket:
            websocket.transport.abort()
        await application.finished.wait()
    assert application.events == ["startup", "closed 3002", "closed 1006", "shutdown"] or (
        # wsproto's implementation does not tell a lost connection from one without a code
        application.events == ["startup", "closed 3002", "closed 1005", "shutdown"]
    )


@websocket_implementations
async def test_websocket_over_tls(loop: asyncio.AbstractEventLoop, implementation: str) -> None:
    with certificate.files() as (chain, key):
        options = {"ws": implementation, "ssl_certfile": chain, "ssl_keyfile": key}
        async with uvicorn_server(Application(), **options) as server:
            url = server.url(scheme="wss")
            async with websockets.connect(url, ssl=client_context(), proxy=None) as websocket:
                await websocket.send(pattern(500_000))
                assert await websocket.recv() == pattern(500_000)


@websocket_implementations
async def test_shutdown_closes_websockets(
    loop: asyncio.AbstractEventLoop, implementation: str
) -> None:
    async with uvicorn_server(Application(), ws=implementation) as server:
        async with websockets.connect(server.url(scheme="ws"), proxy=None) as websocket:
            await websocket.send("hello")
            assert await websocket.recv() == "hello"
            server.server.should_exit = True
            with pytest.raises(websockets.ConnectionClosed):
                await websocket.recv()
            assert websocket.close_code == 1012


# Start and end


async def test_lifespan(loop: asyncio.AbstractEventLoop) -> None:
    application = Application()
    async with uvicorn_server(application, lifespan="on") as server, client() as http:
        await http.get(server.url("/hello"))
        assert application.events == ["startup"]
    assert application.events == ["startup", "shutdown"]


async def test_a_failing_startup_ends_the_server(loop: asyncio.AbstractEventLoop) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    server = uvicorn.Server(uvicorn.Config(fails, log_config=None, lifespan="on", port=0))
    with pytest.raises(SystemExit) as ended:
        await server.serve()
    assert ended.value.code == 3


async def test_graceful_shutdown_waits_for_requests(loop: asyncio.AbstractEventLoop) -> None:
    application = Application()
    async with uvicorn_server(application) as server, client() as http, client() as idle:
        await idle.get(server.url("/hello"))
        request = asyncio.create_task(http.get(server.url("/wait")))
        await application.waiting.wait()
        server.server.should_exit = True
        await until_refused(server.address)
        assert not request.done()
        assert not server.task.done()
        application.proceed.set()
        assert (await request).text == "waited"
        await server.task
    assert application.events == ["startup", "shutdown"]


async def test_graceful_shutdown_has_a_time_limit(loop: asyncio.AbstractEventLoop) -> None:
    application = Application()
    async with uvicorn_server(application, timeout_graceful_shutdown=0) as server:
        async with client() as http:
            request = asyncio.create_task(http.get(server.url("/wait")))
            await application.waiting.wait()
            server.server.should_exit = True
            await server.task
            response = await request
            assert response.status_code == 500
    assert application.events == ["startup", "cancelled", "shutdown"]


# The command line

LOOPS = {
    "asyncio": ("asyncio", "asyncio.unix_events"),
    "kloop": ("kloop:new_event_loop", "kloop.loop"),
}


@contextlib.contextmanager
def uvicorn_process(
    loop_name: str, *options: str, inherited: Sequence[int] = ()
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "uvicorn", "--loop", LOOPS[loop_name][0], *options]
    command += ["--log-level", "warning", "applications:app"]
    with subprocess.Popen(
        command,
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        pass_fds=inherited,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def check_end(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """The process must end of the signal, which uvicorn raises again once all is done."""
    _, errors = process.communicate(timeout=20)
    if number == signal.SIGINT:
        assert errors.endswith("KeyboardInterrupt\n") or errors == "", errors
    else:
        assert errors == ""
    assert process.returncode in (0, -number), errors


@parsers
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_takes_the_loop_by_name(
    loop_name: str, parser: str, number: signal.Signals
) -> None:
    with listener() as sock:
        address = sock.getsockname()
        options = ["--http", parser, "--fd", str(sock.fileno())]
        with uvicorn_process(loop_name, *options, inherited=[sock.fileno()]) as process:
            connection = http.client.HTTPConnection(*address, timeout=20)
            for _ in range(5):
                connection.request("GET", "/loop")
                assert connection.getresponse().read() == LOOPS[loop_name][1].encode()
            connection.close()
            process.send_signal(number)
            check_end(process, number)


def connect_when(path: Path, listening: bool) -> socket.socket:
    """A connection to the Unix socket, or a useless socket, once it is, or is no longer, served."""
    limit = time.monotonic() + 20
    while True:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(20)
        try:
            sock.connect(str(path))
            connected = True
        except (FileNotFoundError, ConnectionRefusedError):
            connected = False
        if connected == listening:
            return sock
        sock.close()
        assert time.monotonic() < limit, "it does not come true"
        time.sleep(0.01)


def test_after_a_signal_requests_are_finished(loop_name: str, tmp_path: Path) -> None:
    path = tmp_path / "uvicorn.sock"
    with uvicorn_process(loop_name, "--uds", str(path)) as process:
        with connect_when(path, listening=True) as sock, sock.makefile("rb") as replies:
            sock.sendall(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 8\r\n\r\nhalf")
            while replies.readline() != b"4\r\n":
                pass
            process.send_signal(signal.SIGTERM)
            connect_when(path, listening=False).close()
            sock.sendall(b"rest")
            assert replies.read() == b"half\r\n4\r\nrest\r\n0\r\n\r\n"
        check_end(process, signal.SIGTERM)
