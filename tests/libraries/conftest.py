"""Fixtures of the tests that run other projects' released packages on the loop."""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

pytest.register_assert_rewrite("applications", "server_process")  # before their first import

import servers  # noqa: E402
from server_process import Serve, Server, program  # noqa: E402

HERE = Path(__file__).parent


@contextlib.contextmanager
def server_or_skip[Where](start: Callable[[], AbstractContextManager[Where]]) -> Iterator[Where]:
    with contextlib.ExitStack() as stack:
        try:
            where = stack.enter_context(start())
        except servers.ServerAbsent as absent:
            if "CI" in os.environ:
                raise
            pytest.skip(str(absent))
        yield where


@pytest.fixture(scope="session")
def postgresql() -> Iterator[servers.PostgreSQL]:
    """A PostgreSQL server."""
    with server_or_skip(servers.postgresql) as where:
        yield where


@pytest.fixture(scope="session")
def redis_server() -> Iterator[servers.Redis]:
    """A Redis server."""
    with server_or_skip(servers.redis) as where:
        yield where


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """Starts serve_per_core with a handler of this folder; SIGTERM must end it without a fault."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("PYTHONPATH", str(HERE))

        def start(handler: str, arguments: str = "", **options: str) -> Server:
            server = Server(["-c", program(handler, arguments, **options)])
            stack.enter_context(server)
            server.wait_until_ready()
            return server

        yield start
