"""redis-py's asyncio client on the loop, with a real Redis server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio as redis
import servers
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError, WatchError
from redis.exceptions import TimeoutError as RedisTimeoutError

import certificate
from support import LOCALHOST, listener, pattern

TIMEOUT = 20.0


@contextlib.asynccontextmanager
async def client(server: servers.Redis, **options: Any) -> AsyncIterator[redis.Redis]:
    """A client of an empty database."""
    options = {"host": server.host, "port": server.port, "socket_timeout": TIMEOUT} | options
    async with redis.Redis(**options) as made:
        await made.flushdb()
        yield made


async def test_commands(loop: asyncio.AbstractEventLoop, redis_server: servers.Redis) -> None:
    large = pattern(5_000_000)
    async with client(redis_server) as db:
        assert await db.set("large", large)
        assert await db.get("large") == large
        assert await db.get("absent") is None
        assert [await db.incr("n") for _ in range(50)] == list(range(1, 51))
        await db.hset("hash", mapping={"a": 1, "b": 2})
        assert await db.hgetall("hash") == {b"a": b"1", b"b": b"2"}
        await db.rpush("list", *range(1000))
        assert await db.lrange("list", 0, -1) == [b"%d" % number for number in range(1000)]
        with pytest.raises(ResponseError):
            await db.incr("hash")
        assert sorted([key async for key in db.scan_iter()]) == [b"hash", b"large", b"list", b"n"]


@pytest.mark.parametrize("transaction", [False, True], ids=["plain", "transaction"])
async def test_pipelines(
    loop: asyncio.AbstractEventLoop, redis_server: servers.Redis, transaction: bool
) -> None:
    async with client(redis_server) as db, db.pipeline(transaction=transaction) as pipeline:
        for number in range(5000):
            pipeline.set(f"key {number}", number)
            pipeline.get(f"key {number}")
        replies = await pipeline.execute()
    assert replies == [reply for n in range(5000) for reply in (True, b"%d" % n)]


async def test_a_watched_key_that_changes(
    loop: asyncio.AbstractEventLoop, redis_server: servers.Redis
) -> None:
    async with client(redis_server) as db, db.pipeline() as pipeline:
        await pipeline.watch("key")
        pipeline.multi()
        pipeline.set("key", "mine")
        await db.set("key", "theirs")
        with pytest.raises(WatchError):
            await pipeline.execute()
        assert await db.get("key") == b"theirs"


async def test_publish_and_subscribe(
    loop: asyncio.AbstractEventLoop, redis_server: servers.Redis
) -> None:
    count = 500
    subscribed = asyncio.Barrier(6)
    async with client(redis_server) as db:

        async def subscribe() -> list[bytes]:
            received = []
            async with db.pubsub(ignore_subscribe_messages=False) as pubsub:
                await pubsub.subscribe("news")
                await pubsub.psubscribe("new*")
                async for message in pubsub.listen():
                    if message["type"] == "psubscribe":
                        await subscribed.wait()
                    elif message["type"] == "message":
                        received.append(message["data"])
                    elif message["type"] == "pmessage" and message["data"] == b"end":
                        return received
            raise AssertionError

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(subscribe()) for _ in range(5)]
            await subscribed.wait()
            for number in range(count):
                await db.publish("news", number)
            await db.publish("newest", "end")
        for task in tasks:
            assert task.result() == [b"%d" % number for number in range(count)]


async def test_blocking_pops(loop: asyncio.AbstractEventLoop, redis_server: servers.Redis) -> None:
    async with client(redis_server) as db:

        async def pop() -> bytes:
            _, value = await db.blpop(["queue"])
            return bytes(value)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(pop()) for _ in range(10)]
            while (await db.info("clients"))["blocked_clients"] < 10:
                await asyncio.sleep(0.005)
            await db.rpush("queue", *range(10))
        assert sorted(task.result() for task in tasks) == [b"%d" % n for n in range(10)]
        assert await db.blpop(["queue"], timeout=0.05) is None


async def test_a_pool_under_load(
    loop: asyncio.AbstractEventLoop, redis_server: servers.Redis
) -> None:
    pool = redis.BlockingConnectionPool(
        max_connections=10, timeout=TIMEOUT, host=redis_server.host, port=redis_server.port
    )
    async with redis.Redis.from_pool(pool) as db:
        await db.flushdb()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(db.incr("n")) for _ in range(1000)]
        assert sorted(task.result() for task in tasks) == list(range(1, 1001))
        assert (await db.info("clients"))["connected_clients"] <= 10


async def test_unix_socket(loop: asyncio.AbstractEventLoop, redis_server: servers.Redis) -> None:
    async with redis.Redis(unix_socket_path=redis_server.socket_path) as db:
        await db.set("large", pattern(2_000_000))
        assert await db.get("large") == pattern(2_000_000)


async def test_tls(loop: asyncio.AbstractEventLoop, redis_server: servers.Redis) -> None:
    options = {"port": redis_server.tls_port, "ssl": True, "ssl_ca_data": certificate.CERTIFICATE}
    async with client(redis_server, **options) as db:
        await db.set("large", pattern(2_000_000))
        assert await db.get("large") == pattern(2_000_000)
        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(db.set(f"key {number}", number))
        assert await db.dbsize() == 51


async def test_tls_refuses_a_certificate_that_nobody_vouches_for(
    loop: asyncio.AbstractEventLoop, redis_server: servers.Redis
) -> None:
    once = Retry(NoBackoff(), 0)
    where = {"host": redis_server.host, "port": redis_server.tls_port}
    async with redis.Redis(**where, ssl=True, retry=once) as db:
        with pytest.raises(RedisConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            await db.ping()


# Ends that come too early


async def test_a_reply_that_does_not_come(loop: asyncio.AbstractEventLoop) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, LOCALHOST, 0) as server:
        host, port = server.sockets[0].getsockname()
        async with redis.Redis(host=host, port=port, socket_timeout=0.05, retry=None) as db:
            with pytest.raises(RedisTimeoutError):
                await db.ping()


async def test_a_cancelled_command_does_not_spoil_its_connection(
    loop: asyncio.AbstractEventLoop, redis_server: servers.Redis
) -> None:
    async with client(redis_server, max_connections=2) as db:
        waiting = asyncio.create_task(db.blpop(["queue"]))
        while (await db.info("clients"))["blocked_clients"] < 1:
            await asyncio.sleep(0.005)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await db.set("key", "value")
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(db.get("key")) for _ in range(2)]
        assert [task.result() for task in tasks] == [b"value"] * 2


async def test_a_killed_connection_is_made_again(
    loop: asyncio.AbstractEventLoop, redis_server: servers.Redis
) -> None:
    async with client(redis_server, single_connection_client=True) as db:
        first = await db.client_id()
        async with redis.Redis(host=redis_server.host, port=redis_server.port) as other:
            await other.client_kill_filter(_id=first)
        assert await db.client_id() != first


async def test_nobody_listens(loop: asyncio.AbstractEventLoop) -> None:
    with listener() as sock:
        port = sock.getsockname()[1]
    async with redis.Redis(host=LOCALHOST, port=port, retry=None) as db:
        with pytest.raises(RedisConnectionError):
            await db.ping()
