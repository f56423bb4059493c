"""Other projects' packages on the workers of serve_per_core, on every core at once."""

import http.client
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import PATIENCE, Client, Serve, Server
from servers import PostgreSQL, Redis

from support import pattern

CORES = 2


@pytest.fixture(scope="module")
def server(serve: Serve) -> Server:
    """The server of all tests here that have workers run functions."""
    return serve("'on_workers:calls'")


@pytest.fixture
def workers(server: Server) -> Iterator[list[Client]]:
    """A connection to each worker, to have it run functions of on_workers.py."""
    with server.one_client_per_core(CORES) as clients:
        yield clients
        call_all(clients, "end_servers")


def call_all(workers: list[Client], name: str, *arguments: object) -> list[object]:
    """Have all workers run a function at the same time."""
    for worker in workers:
        worker.start(name, *arguments)
    return [worker.result() for worker in workers]


def check_http(server: Server) -> None:
    """Talk to all cores: connections are spread over them."""
    connections = [http.client.HTTPConnection(*server.address, timeout=PATIENCE) for _ in range(4)]
    for _ in range(5):
        for connection in connections:
            connection.request("GET", "/hello")
            assert connection.getresponse().read() == b"hello"
    for connection in connections:
        connection.request("POST", "/echo", pattern(1_000_000))
        assert connection.getresponse().read() == pattern(1_000_000)
        connection.close()


def test_uvicorn_serves_the_connections_of_each_core(serve: Serve) -> None:
    check_http(serve("'on_workers:uvicorn_protocol'"))


def test_aiohttp_serves_the_connections_of_each_core(serve: Serve) -> None:
    check_http(serve("'on_workers:aiohttp_protocol'"))


@pytest.mark.parametrize("websocket_implementation", ["websockets-sansio", "wsproto"])
def test_uvicorn_with_httpx_and_websockets(
    workers: list[Client], websocket_implementation: str
) -> None:
    for port in call_all(workers, "serve_uvicorn", websocket_implementation):
        versions = call_all(workers, "use_httpx", f"http://127.0.0.1:{port}", 50)
        assert versions == ["HTTP/1.1"] * CORES
        call_all(workers, "use_websockets", f"ws://127.0.0.1:{port}/", 50)


def test_hypercorn_with_httpx(workers: list[Client]) -> None:
    for port in call_all(workers, "serve_hypercorn"):
        versions = call_all(workers, "use_httpx", f"https://127.0.0.1:{port}", 50)
        assert versions == ["HTTP/2"] * CORES


def test_aiohttp(workers: list[Client]) -> None:
    for port in call_all(workers, "serve_aiohttp"):
        call_all(workers, "use_aiohttp", f"http://127.0.0.1:{port}", 50)


def test_websockets(workers: list[Client]) -> None:
    for port in call_all(workers, "serve_websockets"):
        call_all(workers, "use_websockets", f"ws://127.0.0.1:{port}/", 200)


def test_asyncpg(workers: list[Client], postgresql: PostgreSQL) -> None:
    call_all(workers, "use_asyncpg", postgresql.credentials(), 300)


def test_redis(workers: list[Client], redis_server: Redis) -> None:
    where = {"host": redis_server.host, "port": redis_server.port}
    for number, worker in enumerate(workers):
        worker.start("use_redis", where, f"core {number}", 1000)
    for worker in workers:
        worker.result()


def test_anyio(workers: list[Client]) -> None:
    call_all(workers, "use_anyio")


RECORDED_IMPORT = """
import os, sys

busy = os.environ["IMPORT_IN_PROGRESS"]
os.close(os.open(busy, os.O_CREAT | os.O_EXCL))  # fails where another import is in progress

import xml.dom.minidom  # takes a while
import multidict._multidict
import handlers

os.unlink(busy)

Echo = handlers.Echo
"""


def test_workers_import_extension_modules_one_at_a_time(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "recorded.py").write_text(RECORDED_IMPORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPORT_IN_PROGRESS", str(tmp_path / "busy"))
        patch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        server = serve("'recorded:Echo'", "cores=8")
    with server.connect() as sock:
        sock.sendall(b"hello")
        assert sock.recv(10) == b"hello"
