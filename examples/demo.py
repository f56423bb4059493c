"""What ``make demo`` runs: echo on every core, driven by the load client, with figures per core.

The server (echo_counting.py) is a child process. The load client keeps one request in flight on
each of its connections for some seconds. Then every core is asked for its own counters, and the
server is told to stop. Exit status 0 means: every core served, each request was answered rightly,
and the server ended by itself with status 0.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from echo_counting import STATS

HERE = Path(__file__).resolve().parent
LOAD_CLIENT = HERE.parent / "bench" / "load" / "target" / "release" / "kloop-load"

REQUEST_BYTES = 64
CONNECTIONS_PER_CORE = 16
PATIENCE = 30.0
"""Seconds after which a step that hangs ends the demonstration."""


class Counters(TypedDict):
    """What a core says of itself; see echo_counting.py."""

    index: int
    cpu: int
    interpreter_id: int
    connections: int
    echoed_bytes: int


class DemoError(Exception):
    """The demonstration has failed; the text says how."""


@contextlib.contextmanager
def server(cores: int, port: int) -> Iterator[tuple[subprocess.Popen[str], tuple[str, int]]]:
    """The server's process and its address, once all cores accept."""
    command = [sys.executable, str(HERE / "echo_counting.py"), f"--cores={cores}", f"--port={port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("ready on "):
                raise DemoError("the server did not start")
            host, _, port_text = line.split()[2].rpartition(":")
            yield process, (host, int(port_text))
        finally:
            process.kill()


def drive(address: tuple[str, int], pid: int, connections: int, seconds: float) -> dict[str, Any]:
    """Run the load client; its report."""
    command = [str(LOAD_CLIENT), "--target", f"kloop={address[0]}:{address[1]}@{pid}"]
    command += ["--connections", str(connections), "--size", str(REQUEST_BYTES)]
    # The cores want every CPU: the client must not spin on one while it waits.
    command += ["--duration", str(seconds), "--sleep"]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=seconds + PATIENCE, check=False)
    if done.returncode:
        raise DemoError("the load client failed; see its message above")
    report: dict[str, Any] = json.loads(done.stdout)["targets"][0]
    return report


def ask_every_core(address: tuple[str, int], cores: int, limit: int) -> list[Counters]:
    """Each core's counters, from at most limit questions.

    A connection goes to the core that has the fewest. So, with those kept open that have been
    answered, the next one reaches another core, unless one is late to see its connections closed.
    """
    rows: dict[int, Counters] = {}
    with contextlib.ExitStack() as stack:
        for _ in range(limit):
            connection = stack.enter_context(socket.create_connection(address, PATIENCE))
            connection.sendall(STATS)
            row: Counters = json.loads(stack.enter_context(connection.makefile()).readline())
            rows[row["index"]] = row
            if len(rows) == cores:
                return [rows[index] for index in sorted(rows)]
    raise DemoError(f"not every core answered: {rows}")


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        status = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        raise DemoError("the server did not stop after SIGTERM") from None
    if status != 0:
        raise DemoError(f"the server ended with status {status}")


def show(rows: list[Counters], report: dict[str, Any]) -> None:
    line = "{:>5} {:>4} {:>12} {:>12} {:>12}"
    print(line.format("core", "CPU", "interpreter", "connections", "requests"))
    for row in rows:
        requests = row["echoed_bytes"] // REQUEST_BYTES
        print(
            line.format(
                row["index"], row["cpu"], row["interpreter_id"], row["connections"], f"{requests:,}"
            )
        )
    requests = sum(row["echoed_bytes"] for row in rows) // REQUEST_BYTES
    print(
        line.format("total", "", "", sum(row["connections"] for row in rows), f"{requests:,}")
        + "  (with warm-up)"
    )
    latency = report["latency_us"]
    print(
        f"\n{report['requests']:,} requests in {report['seconds']:.2f} s: "
        f"{report['requests_per_second']:,.0f} requests/s, p50 {latency['p50']:,.0f} us, "
        f"p99 {latency['p99']:,.0f} us, {report['errors']} errors"
    )


def check(rows: list[Counters], report: dict[str, Any], cores: int, connections: int) -> None:
    """Raise DemoError unless every core served its share and the counts agree."""
    if report["errors"]:
        raise DemoError(f"{report['errors']} requests failed: {report['error_messages']}")
    if len({row["interpreter_id"] for row in rows}) != cores:
        raise DemoError("cores share an interpreter")
    for row in rows:
        if row["connections"] == 0 or row["echoed_bytes"] == 0:
            raise DemoError(f"core {row['index']} served nothing")
    if sum(row["connections"] for row in rows) != connections:
        raise DemoError(f"the cores do not count {connections} connections")
    if sum(row["echoed_bytes"] for row in rows) < report["requests"] * REQUEST_BYTES:
        raise DemoError("the cores count fewer requests than were answered")


def main() -> None:
    cpus = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description="show kloop.serve_per_core under load")
    parser.add_argument("--cores", type=int, default=cpus, help="default: one a CPU")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    if not LOAD_CLIENT.exists():
        raise DemoError(f"there is no {LOAD_CLIENT}: `make client` builds it")
    connections = CONNECTIONS_PER_CORE * options.cores
    print(
        f"kloop echo of {REQUEST_BYTES} bytes on {options.cores} cores, CPython "
        f"{platform.python_version()}: {connections} connections for {options.seconds:g} s\n"
    )
    with server(options.cores, options.port) as (process, address):
        report = drive(address, process.pid, connections, options.seconds)
        rows = ask_every_core(address, options.cores, connections + options.cores)
        stop(process)
    show(rows, report)
    check(rows, report, options.cores, connections)


if __name__ == "__main__":
    try:
        main()
    except DemoError as error:
        sys.exit(f"demo.py: {error}")
