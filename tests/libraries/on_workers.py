"""What the workers of serve_per_core do with other projects' packages."""

import asyncio
import contextlib
import functools
import io
from typing import Any

import aiohttp
import anyio
import asyncpg
import httpx
import redis.asyncio as redis
import uvicorn
import websockets
from aiohttp import web
from applications import Application, hypercorn_server, uvicorn_server
from handlers import calls, function
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from support import LOCALHOST, client_context, pattern

__all__ = ["aiohttp_protocol", "calls", "uvicorn_protocol"]

LARGE = pattern(300_000)

# Protocols for the connections that the main thread accepts


@functools.cache
def uvicorn_state() -> tuple[uvicorn.Config, ServerState]:
    config = uvicorn.Config(Application(), log_config=None, lifespan="off")
    config.load()
    return config, ServerState()


def uvicorn_protocol() -> asyncio.Protocol:
    config, state = uvicorn_state()
    return H11Protocol(config, state, app_state={})


@functools.cache
def aiohttp_server() -> web.Server:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/websocket":
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            async for message in socket:
                await socket.send_bytes(message.data)
            return socket
        return web.Response(body=await request.read() or b"hello")

    return web.Server(handler)


def aiohttp_protocol() -> asyncio.Protocol:
    return aiohttp_server()()


# Servers that a worker runs by itself; each gives its port

running = contextlib.AsyncExitStack()
"""What end_servers() ends."""


@function
async def serve_uvicorn(websocket_implementation: str) -> int:
    options = {"http": "h11", "ws": websocket_implementation}
    server = uvicorn_server(Application(), signals=False, **options)
    return (await running.enter_async_context(server)).address[1]


@function
async def serve_hypercorn() -> int:
    url = await running.enter_async_context(hypercorn_server(Application(), tls=True))
    return int(url.rpartition(":")[2])


@function
async def serve_aiohttp() -> int:
    runner = web.ServerRunner(aiohttp_server())
    await runner.setup()
    running.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, LOCALHOST, 0).start()
    return int(runner.addresses[0][1])


@function
async def serve_websockets() -> int:
    async def echo(connection: websockets.ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    server = await running.enter_async_context(websockets.serve(echo, LOCALHOST, 0))
    return int(next(iter(server.sockets)).getsockname()[1])


@function
async def end_servers() -> None:
    await running.aclose()


# Clients


@function
async def use_httpx(url: str, requests: int) -> str:
    """The version of HTTP that was spoken."""
    http2 = url.startswith("https")
    options = {"verify": client_context()} if http2 else {}
    async with httpx.AsyncClient(http2=http2, trust_env=False, **options) as client:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(client.get(f"{url}/hello")) for _ in range(requests)]
        assert [task.result().text for task in tasks] == ["hello"] * requests
        assert (await client.post(f"{url}/echo", content=LARGE)).content == LARGE
        return tasks[0].result().http_version


@function
async def use_aiohttp(url: str, requests: int) -> None:
    async with aiohttp.ClientSession() as session:

        async def get() -> None:
            async with session.get(f"{url}/hello") as response:
                assert await response.text() == "hello"

        async with asyncio.TaskGroup() as group:
            for _ in range(requests):
                group.create_task(get())
        async with session.post(f"{url}/echo", data=LARGE) as response:
            assert await response.read() == LARGE
        async with session.ws_connect(f"{url}/websocket") as socket:
            await socket.send_bytes(LARGE)
            assert await socket.receive_bytes() == LARGE


@function
async def use_websockets(url: str, messages: int) -> None:
    async with websockets.connect(url, proxy=None) as connection:
        for number in range(messages):
            await connection.send(str(number))
            assert await connection.recv() == str(number)
        await connection.send(LARGE)
        assert await connection.recv() == LARGE
        await (await connection.ping())


@function
async def use_asyncpg(server: dict[str, Any], queries: int) -> None:
    async with asyncpg.create_pool(**server, ssl=client_context(), min_size=2, max_size=5) as pool:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(pool.fetchval("SELECT $1::int", n)) for n in range(queries)]
        assert [task.result() for task in tasks] == list(range(queries))
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("CREATE TEMPORARY TABLE copied (n int) ON COMMIT DROP")
            records = [(number,) for number in range(1000)]
            await connection.copy_records_to_table("copied", records=records)
            output = io.BytesIO()
            await connection.copy_from_table("copied", output=output)
            assert len(output.getvalue().split()) == 1000
        try:
            await pool.execute("SELECT pg_sleep(1000)", timeout=0.05)
        except TimeoutError:
            pass
        else:
            raise AssertionError("no timeout")


@function
async def use_redis(where: dict[str, Any], key: str, commands: int) -> None:
    async with redis.Redis(**where) as db:
        await db.delete(key)
        async with db.pipeline() as pipeline:
            for _ in range(commands):
                pipeline.incr(key)
            assert await pipeline.execute() == list(range(1, commands + 1))
        async with db.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe(key)
            popping = asyncio.create_task(db.blpop([f"{key} list"]))
            await db.rpush(f"{key} list", "pushed")
            assert (await popping)[1] == b"pushed"
            await db.publish(key, "published")
            async for message in pubsub.listen():
                assert message["data"] == b"published"
                break


@function
async def use_anyio() -> None:
    async def echo(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            async for data in stream:
                await stream.send(data)

    listener = await anyio.create_tcp_listener(local_host=LOCALHOST)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, echo)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with await anyio.connect_tcp(LOCALHOST, port) as stream:
            await stream.send(b"hello")
            assert await stream.receive() == b"hello"
            with anyio.move_on_after(0.01) as scope:
                await stream.receive()
            assert scope.cancelled_caught
        group.cancel_scope.cancel()
    assert await anyio.to_thread.run_sync(sum, range(10)) == 45
    done = await anyio.run_process(["cat"], input=b"through a process")
    assert done.stdout == b"through a process"
