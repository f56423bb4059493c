"""httpx's AsyncClient on the loop, against uvicorn (HTTP/1.1) and hypercorn (HTTP/2)."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from applications import CHUNK, Application, hypercorn_server, uvicorn_server

import certificate
from support import LOCALHOST, client_context, listener, pattern

VERSIONS = {"1.1": "HTTP/1.1", "2": "HTTP/2"}
versions = pytest.mark.parametrize("version", VERSIONS)


@contextlib.asynccontextmanager
async def client(
    version: str = "1.1",
    application: Application | None = None,
    *,
    timeout: float | httpx.Timeout = 20,
    **options: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    """A client over TLS of a server that speaks this version of HTTP."""
    application = application or Application()
    async with contextlib.AsyncExitStack() as stack:
        if version == "2":
            serving = hypercorn_server(application, tls=True)
            url = await stack.enter_async_context(serving)
        else:
            chain, key = stack.enter_context(certificate.files())
            served = uvicorn_server(application, ssl_certfile=chain, ssl_keyfile=key)
            url = (await stack.enter_async_context(served)).url()
        options = {"http2": version == "2", "verify": client_context()} | options
        http = httpx.AsyncClient(base_url=url, timeout=timeout, trust_env=False, **options)
        yield await stack.enter_async_context(http)


@versions
async def test_requests(loop: asyncio.AbstractEventLoop, version: str) -> None:
    body = pattern(1_000_000)
    async with client(version) as http:
        for _ in range(5):
            response = await http.get("/hello")
            assert response.http_version == VERSIONS[version]
            assert response.text == "hello"
        assert (await http.post("/echo", content=body)).content == body


@versions
async def test_many_requests_at_once(loop: asyncio.AbstractEventLoop, version: str) -> None:
    async with client(version, limits=httpx.Limits(max_connections=20)) as http:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(http.post("/echo", content=pattern(500 * number)))
                for number in range(100)
            ]
        for number, task in enumerate(tasks):
            assert task.result().content == pattern(500 * number)


@versions
async def test_a_response_streams(loop: asyncio.AbstractEventLoop, version: str) -> None:
    count = 60
    async with client(version) as http, http.stream("GET", f"/chunks?{count}") as response:
        received = 0
        async for part in response.aiter_bytes(len(CHUNK)):
            assert part == CHUNK
            received += 1
            await asyncio.sleep(0)
    assert received == count


@versions
async def test_a_request_streams(loop: asyncio.AbstractEventLoop, version: str) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield CHUNK
            await asyncio.sleep(0)

    async with client(version) as http:
        assert (await http.post("/echo", content=parts())).content == CHUNK * 40


@versions
async def test_a_request_that_takes_too_long(loop: asyncio.AbstractEventLoop, version: str) -> None:
    application = Application()
    async with client(version, application) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.get("/wait", timeout=httpx.Timeout(20, read=0.05))
        application.proceed.set()
        assert (await http.get("/hello")).text == "hello"


async def test_a_request_that_is_cancelled(loop: asyncio.AbstractEventLoop) -> None:
    application = Application()
    async with client("1.1", application) as http:
        request = asyncio.create_task(http.get("/gone"))
        await application.waiting.wait()
        request.cancel()
        await application.finished.wait()
        assert (await http.get("/hello")).text == "hello"
    assert application.events == ["startup", "http.disconnect", "shutdown"]


async def test_the_pool_makes_requests_wait(loop: asyncio.AbstractEventLoop) -> None:
    application = Application()
    limits = httpx.Limits(max_connections=1)
    timeout = httpx.Timeout(20, pool=0.05)
    async with client("1.1", application, limits=limits, timeout=timeout) as http:
        first = asyncio.create_task(http.get("/wait"))
        await application.waiting.wait()
        with pytest.raises(httpx.PoolTimeout):
            await http.get("/hello")
        application.proceed.set()
        assert (await first).text == "waited"
        assert (await http.get("/hello")).text == "hello"


async def test_a_certificate_that_nobody_vouches_for(loop: asyncio.AbstractEventLoop) -> None:
    async with client(verify=ssl.create_default_context()) as http:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await http.get("/hello")


async def test_nobody_listens(loop: asyncio.AbstractEventLoop) -> None:
    with listener() as sock:
        port = sock.getsockname()[1]
    async with httpx.AsyncClient(trust_env=False) as http:
        with pytest.raises(httpx.ConnectError):
            await http.get(f"http://{LOCALHOST}:{port}/")


async def test_a_response_that_breaks_off(loop: asyncio.AbstractEventLoop) -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(half, LOCALHOST, 0) as server:
        host, port = server.sockets[0].getsockname()
        async with httpx.AsyncClient(trust_env=False) as http:
            with pytest.raises(httpx.RemoteProtocolError):
                await http.get(f"http://{host}:{port}/")
