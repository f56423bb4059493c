"""Fixtures of the tests that start servers in child processes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("server_process")  # before its first import

from server_process import Serve, Server, program  # noqa: E402


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server; those that the test has not ended are ended by SIGTERM, without a fault."""
    with contextlib.ExitStack() as stack:

        def start(handler: str = "'handlers:Echo'", arguments: str = "", **options: str) -> Server:
            flags = options.pop("flags", "").split()
            server = Server([*flags, "-c", program(handler, arguments, **options)])
            stack.enter_context(server)
            server.wait_until_ready()
            return server

        yield start


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Serve]:
    """Starts a server from the text of a script file, with arguments."""
    with contextlib.ExitStack() as stack:

        def start(text: str, *arguments: str) -> Server:
            file = tmp_path / f"program{len(list(tmp_path.iterdir()))}.py"
            file.write_text(text)
            return stack.enter_context(Server([str(file), *arguments]))

        yield start
