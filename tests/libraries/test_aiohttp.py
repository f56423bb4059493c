"""aiohttp's server and client on the loop."""

import asyncio
import base64
import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from support import LOCALHOST, client_context, listener, pattern, server_context

CHUNK = pattern(65536)


async def hello(request: web.Request) -> web.Response:
    return web.Response(text="hello")


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


async def echo_stream(request: web.Request) -> web.StreamResponse:
    """Sends each part of the body back as it comes."""
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    async for part in request.content.iter_any():
        await response.write(part)
    await response.write_eof()
    return response


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(int(request.query["count"])):
        await response.write(CHUNK)
    return response


async def never(request: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


async def half(request: web.Request) -> web.StreamResponse:
    """Begins a response and never ends it."""
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"half")
    await asyncio.Event().wait()
    raise AssertionError


async def websocket(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(max_msg_size=0)
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT and message.data == "close":
            await socket.close(code=3001, message=b"asked")
        elif message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


@contextlib.asynccontextmanager
async def serving(
    *routes: web.AbstractRouteDef, tls: ssl.SSLContext | None = None, path: Path | None = None
) -> AsyncIterator[str]:
    """Serve the routes over TCP, or on a Unix socket. Gives the base URL."""
    application = web.Application(client_max_size=1 << 30)
    application.add_routes(routes)
    runner = web.AppRunner(application, shutdown_timeout=1, handler_cancellation=True)
    await runner.setup()
    site: web.BaseSite
    if path is not None:
        url = "http://localhost"
        site = web.UnixSite(runner, path, ssl_context=tls)
    else:
        sock = listener()
        url = f"{'https' if tls else 'http'}://{LOCALHOST}:{sock.getsockname()[1]}"
        site = web.SockSite(runner, sock, ssl_context=tls)
    await site.start()
    try:
        yield url
    finally:
        await runner.cleanup()


def session(**options: Any) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20), **options)


async def test_requests_and_responses(loop: asyncio.AbstractEventLoop) -> None:
    ports = set()

    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername"))
        return await echo(request)

    async with serving(web.post("/", handler)) as url, session() as client:
        for body in (b"", b"small", pattern(1_000_000)):
            async with client.post(url, data=body) as response:
                assert await response.read() == body
    assert len(ports) == 1, "connections are kept"


async def test_bodies_stream_both_ways_at_once(loop: asyncio.AbstractEventLoop) -> None:
    count = 60
    echoed = asyncio.Semaphore(0)

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield CHUNK
            await echoed.acquire()

    async with serving(web.post("/", echo_stream)) as url, session() as client:
        async with client.post(url, data=parts()) as response:
            assert response.headers["transfer-encoding"] == "chunked"
            received = bytearray()
            async for part in response.content.iter_any():
                received += part
                if len(received) % len(CHUNK) == 0:
                    echoed.release()
            assert received == CHUNK * count


async def test_a_response_streams_while_the_client_reads_slowly(
    loop: asyncio.AbstractEventLoop,
) -> None:
    count = 300
    async with serving(web.get("/", stream)) as url, session(read_bufsize=4096) as client:
        async with client.get(url, params={"count": count}) as response:
            for _ in range(count):
                assert await response.content.readexactly(len(CHUNK)) == CHUNK
            assert await response.content.read() == b""


async def test_many_connections_at_once(loop: asyncio.AbstractEventLoop) -> None:
    everybody = asyncio.Barrier(150)

    async def handler(request: web.Request) -> web.Response:
        await everybody.wait()
        return await echo(request)

    connector = aiohttp.TCPConnector(limit=0)
    async with serving(web.post("/", handler)) as url, session(connector=connector) as client:

        async def request(number: int) -> None:
            async with client.post(url, data=pattern(number)) as response:
                assert await response.read() == pattern(number)

        for _ in range(2):
            async with asyncio.TaskGroup() as group:
                for number in range(everybody.parties):
                    group.create_task(request(number))


async def test_the_connector_limits_connections(loop: asyncio.AbstractEventLoop) -> None:
    ports = set()

    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername"))
        return await hello(request)

    connector = aiohttp.TCPConnector(limit=10)
    async with serving(web.get("/", handler)) as url, session(connector=connector) as client:

        async def request() -> None:
            async with client.get(url) as response:
                assert await response.text() == "hello"

        async with asyncio.TaskGroup() as group:
            for _ in range(200):
                group.create_task(request())
    assert len(ports) == 10


async def test_tls(loop: asyncio.AbstractEventLoop) -> None:
    body = pattern(1_000_000)
    async with serving(web.post("/", echo), tls=server_context()) as url, session() as client:
        for _ in range(3):
            async with client.post(url, data=body, ssl=client_context()) as response:
                assert await response.read() == body


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    loop: asyncio.AbstractEventLoop,
) -> None:
    async with serving(web.get("/", hello), tls=server_context()) as url, session() as client:
        with pytest.raises(aiohttp.ClientConnectorCertificateError) as failed:
            await client.get(url)
        assert isinstance(failed.value.certificate_error, ssl.SSLCertVerificationError)


async def test_tls_through_a_proxy(loop: asyncio.AbstractEventLoop) -> None:
    """After CONNECT the client calls start_tls()."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    connected = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, target, _ = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)
        assert method == b"CONNECT"
        connected.append(target.decode())
        host, _, port = target.decode().partition(":")
        upstream_reader, upstream = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        async with asyncio.TaskGroup() as group:
            group.create_task(copy(reader, upstream))
            group.create_task(copy(upstream_reader, writer))

    body = pattern(1_000_000)
    async with serving(web.post("/", echo), tls=server_context()) as url, session() as client:
        async with await asyncio.start_server(proxy, LOCALHOST, 0) as server:
            proxy_url = "http://{}:{}".format(*server.sockets[0].getsockname())
            post = client.post(url, data=body, ssl=client_context(), proxy=proxy_url)
            async with post as response:
                assert await response.read() == body
            await client.close()
        await server.wait_closed()
    assert connected == [url.removeprefix("https://")]


async def test_unix_socket(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    path = tmp_path / "aiohttp.sock"
    connector = aiohttp.UnixConnector(str(path))
    async with serving(web.post("/", echo), path=path) as url:
        async with session(connector=connector) as client:
            async with client.post(url, data=pattern(500_000)) as response:
                assert await response.read() == pattern(500_000)


async def test_files_are_sent(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    """FileResponse uses sendfile()."""
    file = tmp_path / "file"
    file.write_bytes(pattern(5_000_000))

    async def handler(request: web.Request) -> web.FileResponse:
        return web.FileResponse(file)

    async with serving(web.get("/", handler)) as url, session() as client:
        async with client.get(url) as response:
            assert await response.read() == pattern(5_000_000)
        async with client.get(url, headers={"range": "bytes=1000-4000000"}) as response:
            assert response.status == 206
            assert await response.read() == pattern(5_000_000)[1000:4_000_001]
        async with client.get(url) as response:
            assert len(await response.read()) == 5_000_000


# Timeouts, and ends that come too early


@pytest.mark.parametrize("route", [never, half])
@pytest.mark.parametrize("kind", ["total", "sock_read"])
async def test_timeouts(loop: asyncio.AbstractEventLoop, route: Any, kind: str) -> None:
    timeout = aiohttp.ClientTimeout(**{kind: 0.05})
    async with serving(web.get("/", route), web.get("/hello", hello)) as url, session() as client:
        with pytest.raises(TimeoutError):
            async with client.get(url, timeout=timeout) as response:
                await response.read()
        async with client.get(f"{url}/hello") as response:
            assert await response.text() == "hello"


async def test_nobody_listens(loop: asyncio.AbstractEventLoop) -> None:
    with listener() as sock:
        port = sock.getsockname()[1]
    async with session() as client:
        with pytest.raises(aiohttp.ClientConnectorError) as failed:
            await client.get(f"http://{LOCALHOST}:{port}")
        assert isinstance(failed.value.os_error, ConnectionRefusedError)


async def test_the_server_goes_during_a_response(loop: asyncio.AbstractEventLoop) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-length": "1000"})
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.abort()
        return response

    async with serving(web.get("/", handler)) as url, session() as client:
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
            async with client.get(url) as response:
                await response.read()


async def test_a_handler_is_cancelled_when_its_client_goes(
    loop: asyncio.AbstractEventLoop,
) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        started.set()
        try:
            return await never(request)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with serving(web.get("/", handler)) as url, session() as client:
        request = asyncio.create_task(client.request("GET", url))
        await started.wait()
        request.cancel()
        await cancelled.wait()


async def test_cleanup_waits_for_requests(loop: asyncio.AbstractEventLoop) -> None:
    started, proceed = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        started.set()
        await proceed.wait()
        return await hello(request)

    async with session() as client:
        async with serving(web.get("/", handler)) as url:
            request = asyncio.create_task(client.request("GET", url))
            await started.wait()
            loop.call_soon(proceed.set)
        async with await request as response:
            assert await response.text() == "hello"
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.get(url)


# WebSocket


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("compress", [0, 15], ids=["uncompressed", "compressed"])
async def test_websocket_messages(
    loop: asyncio.AbstractEventLoop, tls: bool, compress: int
) -> None:
    context = server_context() if tls else None
    large = pattern(1_000_000)
    async with serving(web.get("/", websocket), tls=context) as url, session() as client:
        connecting = client.ws_connect(
            url, max_msg_size=0, compress=compress, ssl=client_context() if tls else True
        )
        async with connecting as socket:
            for text in ("hello", "ünïcode", large.hex()):
                await socket.send_str(text)
                assert await socket.receive_str() == text
            for data in (b"", large):
                await socket.send_bytes(data)
                assert await socket.receive_bytes() == data
            await socket.send_str("close")
            assert (await socket.receive()).type is WSMsgType.CLOSE
            assert socket.close_code == 3001


async def test_websocket_heartbeat(loop: asyncio.AbstractEventLoop) -> None:
    """Without an answer to its ping the client gives up; with it the connection stays."""

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = next(line[19:] for line in head.split("\r\n") if line.startswith("Sec-WebSocket-Key"))
        accept = accept_value(key)
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-accept: " + accept + b"\r\n\r\n"
        )
        await reader.read()
        writer.close()

    async with session() as client:
        async with await asyncio.start_server(deaf, LOCALHOST, 0) as server:
            url = "http://{}:{}".format(*server.sockets[0].getsockname())
            async with client.ws_connect(url, heartbeat=0.05) as socket:
                message = await socket.receive()
                assert message.type is WSMsgType.ERROR
                assert socket.close_code == 1006
        async with serving(web.get("/", websocket)) as url:
            async with client.ws_connect(url, heartbeat=1.0, autoping=False) as socket:
                assert (await socket.receive()).type is WSMsgType.PONG
                await socket.send_str("still there")
                assert await socket.receive_str() == "still there"


def accept_value(key: str) -> bytes:
    digest = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return base64.b64encode(digest)
