"""hypercorn on the loop: HTTP/1.1, HTTP/2 with and without TLS, WebSocket."""

import asyncio

import httpx
import pytest
import websockets
from applications import CHUNK, Application, hypercorn_server

from support import client_context, pattern

encrypted_or_not = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
both_versions = pytest.mark.parametrize("http2", [False, True], ids=["h11", "h2"])


def client(http2: bool) -> httpx.AsyncClient:
    """Without TLS an HTTP/2 client has to know that its server speaks it."""
    return httpx.AsyncClient(
        http1=not http2,
        http2=http2,
        verify=client_context(),
        timeout=20,
        trust_env=False,
    )


@encrypted_or_not
@both_versions
async def test_requests(loop: asyncio.AbstractEventLoop, tls: bool, http2: bool) -> None:
    body = pattern(700_000)
    async with hypercorn_server(Application(), tls=tls) as url, client(http2) as http:
        for _ in range(5):
            response = await http.get(f"{url}/hello")
            assert response.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
            assert response.text == "hello"
        assert (await http.post(f"{url}/echo", content=body)).content == body


@encrypted_or_not
@both_versions
async def test_streams_at_the_same_time(
    loop: asyncio.AbstractEventLoop, tls: bool, http2: bool
) -> None:
    async with hypercorn_server(Application(), tls=tls) as url, client(http2) as http:

        async def stream() -> None:
            async with http.stream("GET", f"{url}/chunks?12") as response:
                async for part in response.aiter_bytes(len(CHUNK)):
                    assert part == CHUNK

        async with asyncio.TaskGroup() as group:
            for _ in range(12):
                group.create_task(stream())


@encrypted_or_not
async def test_websocket(loop: asyncio.AbstractEventLoop, tls: bool) -> None:
    application = Application()
    options = {"ssl": client_context()} if tls else {}
    async with hypercorn_server(application, tls=tls) as url:
        address = url.replace("http", "ws")
        async with websockets.connect(address, max_size=None, proxy=None, **options) as websocket:
            for message in ("text", "ünïcode", b"bytes", pattern(400_000)):
                await websocket.send(message)
                assert await websocket.recv() == message
            assert await (await websocket.ping()) > 0
            await websocket.close(3001)
        await application.finished.wait()
    started, closed, ended = application.events
    assert (started, closed.split()[0], ended) == ("startup", "closed", "shutdown")


@both_versions
async def test_graceful_shutdown_waits_for_requests(
    loop: asyncio.AbstractEventLoop, http2: bool
) -> None:
    application = Application()
    async with client(http2) as http:
        async with hypercorn_server(application) as url:
            request = asyncio.create_task(http.get(f"{url}/wait"))
            await application.waiting.wait()
            loop.call_later(0.1, application.proceed.set)
        assert (await request).text == "waited"
    assert application.events == ["startup", "shutdown"]
