"""The examples do what they say."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from server_process import EXAMPLES, PATIENCE, Server, echo

from support import pattern

LOAD_CLIENT = EXAMPLES.parent / "bench" / "load" / "target" / "release" / "kloop-load"


@contextmanager
def example(name: str, *arguments: str) -> Iterator[Server]:
    """A server of the examples, on two cores."""
    with Server([str(EXAMPLES / name), "--port=0", "--cores=2", *arguments]) as server:
        match = re.fullmatch(r"ready on (?:http://)?([0-9.]+):([0-9]+)/?", server.next_line())
        assert match is not None
        server.address = match[1], int(match[2])
        yield server


def run(name: str, *arguments: str) -> str:
    """Run an example that ends by itself; its output."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", ["echo_streams.py", "echo_protocol.py", "echo_counting.py"])
def test_echo(name: str) -> None:
    with example(name) as server:
        for _ in range(4):
            with server.connect() as sock:
                echo(sock, pattern(1000))
        output = run("client.py", "--port", str(server.address[1]))
        assert output.startswith("20 connections, 2000 messages, ")


def test_counters_of_a_core() -> None:
    with example("echo_counting.py") as server:
        with server.connect() as first, server.connect() as second, server.connect() as third:
            echo(first, b"four")
            echo(third, b"more")
            rows = []
            for sock in (second, third):
                sock.sendall(b"stats\n")
                with sock.makefile() as lines:
                    rows.append(json.loads(lines.readline()))
    by_core = {row["index"]: row for row in rows}
    assert len(by_core) == 2
    assert sum(row["echoed_bytes"] for row in rows) == 8


def test_http() -> None:
    with example("http_aiohttp.py") as server:
        cores = []
        connections = [http.client.HTTPConnection(*server.address, timeout=20) for _ in range(4)]
        for connection in connections:
            for number in range(1, 101):
                connection.request("GET", f"/{number}", body=b"x" * number)
                response = connection.getresponse()
                assert response.status == 200
                content = json.loads(response.read())
                assert content["message"] == "hello"
                assert content["path"] == f"/{number}"
            cores.append((content["core"], content["requests"]))
        assert sorted(cores) == [(0, 100), (0, 200), (1, 100), (1, 200)]
        for connection in connections:
            connection.close()


def test_http_under_wrk() -> None:
    if shutil.which("wrk") is None:
        assert "CI" not in os.environ, "wrk is not installed"
        pytest.skip("wrk is not installed")
    with example("http_aiohttp.py") as server:
        command = ["wrk", "-t1", "-c64", "-d5s", f"http://127.0.0.1:{server.address[1]}/"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
        requests = re.search(r"(\d+) requests in", done.stdout)
        assert requests is not None
        assert int(requests[1]) > 100
        assert "Socket errors" not in done.stdout
        assert "Non-2xx" not in done.stdout


def test_client_without_a_server() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "client.py"), "--port", "1"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "ConnectionRefusedError" in done.stderr


@pytest.mark.skipif(
    not LOAD_CLIENT.exists() and "CI" not in os.environ,
    reason="the load client is not built (make client does that)",
)
@pytest.mark.parametrize("cores", [1, 3])
def test_demo(cores: int) -> None:
    output = run("demo.py", f"--cores={cores}", "--seconds=0.5")
    rows = re.findall(r"^ +(\d+) +\d+ +(\d+) +16 +([\d,]+)$", output, re.MULTILINE)
    assert [row[0] for row in rows] == [str(index) for index in range(cores)]
    assert len({row[1] for row in rows}) == cores
    assert ", 0 errors" in output


@pytest.mark.parametrize("name", ["echo_streams.py", "echo_protocol.py", "http_aiohttp.py"])
def test_interrupt(name: str) -> None:
    with example(name) as server:
        assert server.stop(signal.SIGINT).errors == ""
