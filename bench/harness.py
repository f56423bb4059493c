"""What the benchmark scripts share: server processes, the load client, tables.

The method in short. All servers of a comparison are alive at once, and one load client
visits them in turn in short bursts, in reverse order every other round. Two servers are
compared round by round, by the processor time each spent per request, so that what else
the machine does falls on both alike. The load client reads a server's processor time
from the kernel before and after each burst, and ends a burst only when every reply is
in.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

BENCH = Path(__file__).resolve().parent
SERVERS = BENCH / "servers"
LOAD_MANIFEST = BENCH / "load" / "Cargo.toml"

START_SECONDS = 30.0
STOP_SECONDS = 5.0


class BenchError(Exception):
    """A benchmark cannot go on; the message says why in one line."""


class LoadRound(TypedDict):
    """One visit of the load client."""

    requests: int
    seconds: float
    server_cpu_us: float | None
    client_cpu_us: float


class Latency(TypedDict):
    """Quantiles in microseconds."""

    p50: float
    p99: float
    max: float


class LoadResult(TypedDict):
    """All visits to one server, as the load client reports them."""

    name: str
    requests: int
    lost: int
    errors: int
    error_messages: list[str]
    seconds: float
    requests_per_second: float
    latency_us: Latency
    server_cpu_us_per_request: float | None
    client_cpu_us_per_request: float
    connections: int
    size: int
    rounds: list[LoadRound]


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of a figure over the rounds."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Summarise `values`, of which there is at least one."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, lower, upper)

    def __format__(self, spec: str) -> str:
        """Format all three, each by `spec`, as `median (lower-upper)`."""
        lower, upper = format(self.lower, spec), format(self.upper, spec)
        return f"{format(self.median, spec)} ({lower}-{upper})"


class Server:
    """A server process, from its start until the end of a `with` block.

    The server prints `LISTENS <address>`, in the words of the load client, when it
    listens; further lines are kept in `lines`.
    """

    def __init__(
        self,
        name: str,
        script: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        descriptors: Sequence[int] = (),
    ) -> None:
        """Prepare `script` from the servers' folder; `name` is for the reports.

        The server inherits `descriptors`.
        """
        self.name = name
        self.lines: list[str] = []
        self._address: str | None = None
        self._command = [sys.executable, str(SERVERS / script), *arguments]
        self._environment = {**os.environ, **(environment or {})}
        self._descriptors = descriptors
        self._listens = threading.Event()

    def __enter__(self) -> Self:
        """Start the server and wait until it listens."""
        # A session of its own, so that an interrupt from the terminal stops the
        # benchmark, which then stops its servers.
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            pass_fds=self._descriptors,
        )
        try:
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
            if not self._listens.wait(START_SECONDS) or self._address is None:
                raise BenchError(f"the server '{self.name}' does not listen")
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server."""
        self.stop()

    def stop(self) -> None:
        """Ask the server to end, kill it if it does not, and collect its last lines."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"the server '{self.name}' had to be killed", file=sys.stderr)
        finally:
            self._kill()
            self._reader.join(STOP_SECONDS)

    @property
    def target(self) -> str:
        """The server, as the load client's `--target` has it."""
        return f"{self.name}={self._address}@{self._process.pid}"

    def cpu_seconds(self) -> float:
        """Read the processor time that the server has used so far."""
        # The clock of another process: clock_getcpuclockid(3) of the C library computes it so.
        return time.clock_gettime((~self._process.pid << 3) | 2)

    def _kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                word, _, rest = line.strip().partition(" ")
                if word == "LISTENS" and self._address is None:
                    self._address = rest
                    self._listens.set()
                else:
                    self.lines.append(line.strip())
        self._listens.set()


class LoadClient:
    """The native load client."""

    def __init__(self) -> None:
        """Build the client, unless it is built."""
        folder = os.environ.get("CARGO_TARGET_DIR")
        target = Path(folder).absolute() if folder else LOAD_MANIFEST.parent / "target"
        self._binary = target / "release" / "kloop-load"
        if shutil.which("cargo"):
            command = ["cargo", "build", "--release", "--quiet", "--locked"]
            command += ["--manifest-path", str(LOAD_MANIFEST), "--target-dir", str(target)]
            if subprocess.run(command, check=False).returncode:
                raise BenchError("the load client cannot be built")
        elif not self._binary.exists():
            raise BenchError("the load client is not built, and there is no cargo")

    def run(
        self,
        servers: Iterable[Server],
        *,
        connections: int,
        size: int,
        rounds: int,
        burst_ms: int,
        warmup_ms: int,
        cpu: int | None = None,
        sleep: bool = False,
    ) -> list[LoadResult]:
        """Visit `servers` in turn; the results come in their order."""
        command = [str(self._binary)]
        for server in servers:
            command += ["--target", server.target]
        command += ["--connections", str(connections), "--size", str(size)]
        command += ["--rounds", str(rounds), "--burst-ms", str(burst_ms)]
        command += ["--warmup-ms", str(warmup_ms)]
        if cpu is not None:
            command += ["--cpu", str(cpu)]
        if sleep:
            command.append("--sleep")
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise BenchError("the load client gave up; see its message above")
        results = cast("list[LoadResult]", json.loads(done.stdout)["targets"])
        for result in results:
            if result["requests"] == 0:
                raise BenchError(f"the server '{result['name']}' answered nothing")
        return results


def missing(module: str) -> str | None:
    """Why `module` cannot be imported by a server, or None if it can."""
    command = [sys.executable, "-c", f"import {module}"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0:
        return None
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if reason == f"ModuleNotFoundError: No module named '{module}'":
        return "not installed"
    return f"cannot be imported ({reason})"


def cpu_per_request(result: LoadResult) -> list[float]:
    """Compute the server's processor time per request in us, round by round."""
    return [
        (entry["server_cpu_us"] or 0.0) / max(entry["requests"], 1) for entry in result["rounds"]
    ]


def cpus_used(result: LoadResult) -> list[float]:
    """Compute how many CPUs the server kept busy, round by round."""
    return [(entry["server_cpu_us"] or 0.0) / 1e6 / entry["seconds"] for entry in result["rounds"]]


def rates(result: LoadResult) -> list[float]:
    """Compute the requests per second, round by round."""
    return [entry["requests"] / entry["seconds"] for entry in result["rounds"]]


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Divide round by round, leaving out rounds in which nothing was answered."""
    pairs = zip(numerators, denominators, strict=True)
    return [above / below for above, below in pairs if above > 0 and below > 0]


def table_head(heads: Sequence[str]) -> str:
    """Render the head of a Markdown table; `>` before a name aligns its column to the right."""
    marks = ["--:" if head.startswith(">") else "---" for head in heads]
    return table_row([head.removeprefix(">") for head in heads]) + "\n" + table_row(marks)


def table_row(cells: Sequence[str]) -> str:
    """Render a line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def environment() -> dict[str, Any]:
    """Where a result was taken, as far as it matters for reading it."""
    return {
        "python": platform.python_version(),
        "build": platform.python_build()[0],
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": len(cpus()),
        "load_average": os.getloadavg()[0],
    }


def describe_environment(facts: Mapping[str, Any]) -> str:
    """Put the result of `environment` in one line."""
    return (
        f"CPython {facts['python']}, kernel {facts['kernel']}, {facts['machine']}, "
        f"{facts['cpus']} CPUs, load average at the start {facts['load_average']:.2f}"
    )


def write_json(path: Path | None, content: object) -> None:
    """Write `content` to `path`, if there is one."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def cpus() -> list[int]:
    """List the CPUs this process may use."""
    return sorted(os.sched_getaffinity(0))


def numbers(text: str) -> list[int]:
    """Read a list such as `10,100` of positive numbers, for an argument parser."""
    values = [int(part) for part in text.split(",")]
    if min(values) < 1:
        raise ValueError(text)
    return values


def names(text: str) -> list[str]:
    """Read a list such as `a,b`, for an argument parser."""
    return [part.strip() for part in text.split(",") if part.strip()]


def end_on_signals() -> None:
    """Let a polite signal unwind the stack, so that the servers are stopped."""

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
