"""asyncpg on the loop, with a real PostgreSQL server."""

import asyncio
import contextlib
import io
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from servers import PostgreSQL

import certificate
from support import client_context, pattern

TIMEOUT = 20.0


@contextlib.asynccontextmanager
async def connected(server: PostgreSQL, **options: Any) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(
        **({"timeout": TIMEOUT, "ssl": False} | server.credentials() | options)
    )
    try:
        yield connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def pooled(server: PostgreSQL, **options: Any) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(
        **({"timeout": TIMEOUT, "ssl": False} | server.credentials() | options)
    ) as pool:
        yield pool


async def test_queries(loop: asyncio.AbstractEventLoop, postgresql: PostgreSQL) -> None:
    async with connected(postgresql) as connection:
        assert await connection.fetchval("SELECT $1::int + 1", 41) == 42
        rows = await connection.fetch("SELECT n, n::text AS t FROM generate_series(1, 20000) AS n")
        assert [(row["n"], row["t"]) for row in rows] == [(n, str(n)) for n in range(1, 20001)]
        large = pattern(3_000_000)
        assert await connection.fetchval("SELECT $1::bytea", large) == large
        assert await connection.fetchrow("SELECT 1 WHERE false") is None


async def test_a_query_that_fails_leaves_the_connection_usable(
    loop: asyncio.AbstractEventLoop, postgresql: PostgreSQL
) -> None:
    async with connected(postgresql) as connection:
        for _ in range(3):
            with pytest.raises(asyncpg.DivisionByZeroError):
                await connection.fetchval("SELECT 1 / 0")
            with pytest.raises(asyncpg.PostgresSyntaxError):
                await connection.execute("SELEC")
            assert await connection.fetchval("SELECT 1") == 1


async def test_prepared_statements_and_cursors(
    loop: asyncio.AbstractEventLoop, postgresql: PostgreSQL
) -> None:
    async with connected(postgresql) as connection:
        square = await connection.prepare("SELECT $1::int * $1::int")
        assert [await square.fetchval(n) for n in range(100)] == [n * n for n in range(100)]
        await connection.execute("CREATE TEMPORARY TABLE numbers (n int)")
        await connection.executemany(
            "INSERT INTO numbers VALUES ($1)", [(number,) for number in range(5000)]
        )
        async with connection.transaction():
            cursor = connection.cursor("SELECT n FROM numbers ORDER BY n", prefetch=50)
            assert [row["n"] async for row in cursor] == list(range(5000))


async def test_transactions(loop: asyncio.AbstractEventLoop, postgresql: PostgreSQL) -> None:
    async with connected(postgresql) as connection, connected(postgresql) as other:
        await connection.execute("CREATE TABLE accounts (name text PRIMARY KEY, amount int)")
        try:
            with contextlib.suppress(LookupError):
                async with connection.transaction():
                    await connection.execute("INSERT INTO accounts VALUES ('ann', 1)")
                    raise LookupError
            assert await other.fetchval("SELECT count(*) FROM accounts") == 0
            async with connection.transaction():
                await connection.execute("INSERT INTO accounts VALUES ('ann', 1)")
                with pytest.raises(asyncpg.UniqueViolationError):
                    async with connection.transaction():  # a savepoint
                        await connection.execute("INSERT INTO accounts VALUES ('ann', 2)")
                assert await other.fetchval("SELECT count(*) FROM accounts") == 0
            assert await other.fetchval("SELECT amount FROM accounts") == 1
        finally:
            await connection.execute("DROP TABLE accounts")


async def test_a_pool_under_load(loop: asyncio.AbstractEventLoop, postgresql: PostgreSQL) -> None:
    backends = set()

    async def query(pool: asyncpg.Pool, number: int) -> int:
        async with pool.acquire() as connection:
            backends.add(connection.get_server_pid())
            return int(await connection.fetchval("SELECT $1::int * 2", number))

    async with pooled(postgresql, min_size=2, max_size=10) as pool:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(query(pool, number)) for number in range(1000)]
        assert [task.result() for task in tasks] == [2 * number for number in range(1000)]
        assert pool.get_size() == 10
    assert len(backends) == 10


async def test_a_pool_replaces_a_connection_that_was_lost(
    loop: asyncio.AbstractEventLoop, postgresql: PostgreSQL
) -> None:
    async with pooled(postgresql, min_size=1, max_size=1) as pool, connected(postgresql) as other:
        async with pool.acquire() as connection:
            first = connection.get_server_pid()
            lost = asyncio.Event()
            connection.add_termination_listener(lambda _: lost.set())
            await other.execute("SELECT pg_terminate_backend($1)", first)
            await lost.wait()
            with pytest.raises((asyncpg.InterfaceError, asyncpg.PostgresError, OSError)):
                await connection.fetchval("SELECT 1")
        assert await pool.fetchval("SELECT pg_backend_pid()") != first


async def test_copy(loop: asyncio.AbstractEventLoop, postgresql: PostgreSQL) -> None:
    records = [(number, f"text {number}" * 10) for number in range(20_000)]
    async with connected(postgresql) as connection:
        await connection.execute("CREATE TEMPORARY TABLE copied (n int, t text)")
        status = await connection.copy_records_to_table("copied", records=records)
        assert status == "COPY 20000"
        output = io.BytesIO()
        await connection.copy_from_query("SELECT * FROM copied ORDER BY n", output=output)
        lines = output.getvalue().decode().splitlines()
        assert lines == [f"{number}\t{text}" for number, text in records]

        async def parts() -> AsyncIterator[bytes]:
            for line in lines[:2000]:
                yield line.encode() + b"\n"

        assert await connection.copy_to_table("copied", source=parts()) == "COPY 2000"
        assert await connection.fetchval("SELECT count(*) FROM copied") == 22_000


async def test_listen_and_notify(loop: asyncio.AbstractEventLoop, postgresql: PostgreSQL) -> None:
    received: asyncio.Queue[str] = asyncio.Queue()
    async with connected(postgresql) as listening, connected(postgresql) as other:
        await listening.add_listener("news", lambda *args: received.put_nowait(args[-1]))
        for number in range(200):
            await other.execute("SELECT pg_notify('news', $1)", str(number))
        assert [await received.get() for _ in range(200)] == [str(number) for number in range(200)]
        await listening.reset()


# Ends that come too early


async def running(connection: asyncpg.Connection, pid: int) -> None:
    """Return once the other connection's backend is running a query that sleeps."""
    activity = "SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND query LIKE '%pg_sleep%'"
    while await connection.fetchval(f"{activity} AND wait_event = 'PgSleep'", pid) is None:
        await asyncio.sleep(0.005)


async def test_a_cancelled_query_is_cancelled_in_the_server(
    loop: asyncio.AbstractEventLoop, postgresql: PostgreSQL
) -> None:
    async with connected(postgresql) as connection, connected(postgresql) as other:
        query = asyncio.create_task(connection.fetchval("SELECT pg_sleep(1000)"))
        await running(other, connection.get_server_pid())
        query.cancel()
        with pytest.raises(asyncio.CancelledError):
            await query
        assert await connection.fetchval("SELECT 1") == 1


async def test_a_query_that_takes_too_long(
    loop: asyncio.AbstractEventLoop, postgresql: PostgreSQL
) -> None:
    async with connected(postgresql) as connection:
        with pytest.raises(TimeoutError):
            await connection.fetchval("SELECT pg_sleep(1000)", timeout=0.05)
        assert await connection.fetchval("SELECT 1") == 1
    async with connected(postgresql, command_timeout=0.05) as connection:
        with pytest.raises(TimeoutError):
            await connection.execute("SELECT pg_sleep(1000)")


async def test_a_server_that_does_not_answer(loop: asyncio.AbstractEventLoop) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        with pytest.raises(TimeoutError):
            await asyncpg.connect(host=host, port=port, user="x", ssl=False, timeout=0.05)


async def test_a_terminated_connection_fails_its_query(
    loop: asyncio.AbstractEventLoop, postgresql: PostgreSQL
) -> None:
    async with connected(postgresql) as connection, connected(postgresql) as other:
        query = asyncio.create_task(connection.fetchval("SELECT pg_sleep(1000)"))
        await running(other, connection.get_server_pid())
        await other.execute("SELECT pg_terminate_backend($1)", connection.get_server_pid())
        with pytest.raises(asyncpg.ConnectionDoesNotExistError):
            await query


# Ways to connect


async def test_wrong_password(loop: asyncio.AbstractEventLoop, postgresql: PostgreSQL) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        async with connected(postgresql, password="wrong"):
            raise AssertionError


async def test_unix_socket(loop: asyncio.AbstractEventLoop, postgresql: PostgreSQL) -> None:
    async with connected(postgresql, host=postgresql.socket_folder, password=None) as connection:
        assert await connection.fetchval("SELECT inet_client_addr()") is None
        large = pattern(1_000_000)
        assert await connection.fetchval("SELECT $1::bytea", large) == large


ENCRYPTED = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"


async def test_tls_with_a_context(loop: asyncio.AbstractEventLoop, postgresql: PostgreSQL) -> None:
    async with connected(postgresql, ssl=client_context()) as connection:
        assert await connection.fetchval(ENCRYPTED)
        large = pattern(3_000_000)
        assert await connection.fetchval("SELECT $1::bytea", large) == large
        query = asyncio.create_task(connection.fetchval("SELECT pg_sleep(1000)", timeout=0.05))
        with pytest.raises(TimeoutError):
            await query


async def test_tls_verify_full(
    loop: asyncio.AbstractEventLoop, postgresql: PostgreSQL, tmp_path: Path
) -> None:
    root = tmp_path / "root.pem"
    root.write_text(certificate.CERTIFICATE)
    where = f"{postgresql.user}:{postgresql.password}@{postgresql.host}:{postgresql.port}"
    dsn = f"postgresql://{where}/{postgresql.database}?sslmode=verify-full"
    connection = await asyncpg.connect(f"{dsn}&sslrootcert={root}", timeout=TIMEOUT)
    assert await connection.fetchval(ENCRYPTED)
    await connection.close()


async def test_tls_refuses_a_certificate_that_nobody_vouches_for(
    loop: asyncio.AbstractEventLoop, postgresql: PostgreSQL
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        async with connected(postgresql, ssl=ssl.create_default_context()):
            raise AssertionError


async def test_a_pool_over_tls(loop: asyncio.AbstractEventLoop, postgresql: PostgreSQL) -> None:
    async with pooled(postgresql, ssl=client_context(), min_size=5, max_size=5) as pool:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(pool.fetchval("SELECT $1::int", n)) for n in range(200)]
        assert [task.result() for task in tasks] == list(range(200))


async def test_closing_a_pool_waits_for_its_connections(
    loop: asyncio.AbstractEventLoop, postgresql: PostgreSQL
) -> None:
    async with asyncio.timeout(TIMEOUT), pooled(postgresql, min_size=1) as pool:
        connection = await pool.acquire()
        closing = asyncio.create_task(pool.close())
        assert await connection.fetchval("SELECT 1") == 1
        assert not closing.done()
        await pool.release(connection)
        await closing
