"""Server processes and the load client.

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
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict, cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

BENCH = Path(__file__).resolve().parent
SERVERS = BENCH / "servers"
LOAD_MANIFEST = BENCH / "load" / "Cargo.toml"

START_SECONDS = 15.0
STOP_SECONDS = 5.0

# A server that uses more of a CPU than this while nobody asks it for anything spins, and
# would take time from whoever is measured.
IDLE_SECONDS = 0.1
IDLE_SHARE = 0.05


class BenchError(Exception):
    """A benchmark cannot go on; the message says why in one line."""


class TookTooLong(Exception):
    """A time limit is over. No `BenchError`, lest it be taken for one server's failure."""


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


class Server:
    """A server process, from its start until the end of a `with` block.

    The server prints `LISTENS <address>`, in the words of the load client, when it
    listens; further lines are kept in `lines`.
    """

    def __init__(
        self,
        name: str,
        *command: str | Path,
        environment: Mapping[str, str] | None = None,
        descriptors: Sequence[int] = (),
    ) -> None:
        """Prepare `command`; `name` is for the reports.

        A command that begins with a name ending in `.py` is a script of the servers' folder.
        The server inherits `descriptors`.
        """
        first, *arguments = map(str, command)
        self.name = name
        self.lines: list[str] = []
        self._address: str | None = None
        script = [sys.executable, str(SERVERS / first)] if first.endswith(".py") else [first]
        self._command = [*script, *arguments]
        self._environment = {**os.environ, **(environment or {})}
        self._descriptors = descriptors
        self._listens = threading.Event()
        self._errors: list[str] = []
        self._stopped = False

    def __enter__(self) -> Self:
        """Start the server and wait until it listens."""
        # A process group of its own, so that an interrupt from the terminal stops the benchmark,
        # which then stops its servers. Not a session: the scheduler shares the CPUs out between
        # sessions, so that a server of two processes would get twice what one of two threads gets.
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
            pass_fds=self._descriptors,
        )
        self._readers = [
            threading.Thread(target=read, daemon=True) for read in (self._read, self._read_errors)
        ]
        try:
            for reader in self._readers:
                reader.start()
            if not self._listens.wait(START_SECONDS) or self._address is None:
                self._kill()
                self._readers[1].join(STOP_SECONDS)
                raise BenchError(self._describe("does not listen"))
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server."""
        self.stop()

    def stop(self) -> None:
        """Ask the server to end, kill it if it does not, and collect its last lines."""
        if self._stopped:
            return
        self._stopped = True
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._kill()
            for reader in self._readers:
                reader.join(STOP_SECONDS)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def pids(self) -> list[int]:
        """All processes of the server."""
        return [self._process.pid]

    @property
    def address(self) -> str:
        """Where it listens, in the words of the load client."""
        assert self._address is not None
        return self._address

    @property
    def target(self) -> str:
        """The server, as the load client's `--target` has it."""
        return f"{self.name}={self._address}@{'+'.join(map(str, self.pids))}"

    def cpu_seconds(self) -> float:
        """Read the processor time that the server has used so far."""
        # The clock of another process: clock_getcpuclockid(3) of the C library computes it so.
        return time.clock_gettime((~self._process.pid << 3) | 2)

    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def _describe(self, fault: str) -> str:
        reason = f": {self._errors[-1]}" if self._errors else ""
        return f"the server '{self.name}' {fault}{reason}"

    def _kill(self) -> None:
        # With all that it started.
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
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

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stderr:
            for line in stderr:
                if line.strip():
                    self._errors = [*self._errors[-20:], line.strip()]


def spinning[S: Server](servers: Sequence[S]) -> list[S]:
    """Find the servers that use the processor while nobody asks them for anything."""
    before = [server.cpu_seconds() for server in servers]
    time.sleep(IDLE_SECONDS)
    return [
        server
        for server, then in zip(servers, before, strict=True)
        if server.cpu_seconds() - then > IDLE_SHARE * IDLE_SECONDS
    ]


class LoadClient:
    """The native load client, and the floor: a native echo server."""

    def __init__(self) -> None:
        """Build both, unless they are built."""
        folder = os.environ.get("CARGO_TARGET_DIR")
        target = Path(folder).absolute() if folder else LOAD_MANIFEST.parent / "target"
        self.binary = target / "release" / "kloop-load"
        self.floor = target / "release" / "kloop-floor"
        if shutil.which("cargo"):
            command = ["cargo", "build", "--release", "--quiet", "--locked"]
            command += ["--manifest-path", str(LOAD_MANIFEST), "--target-dir", str(target)]
            if subprocess.run(command, check=False).returncode:
                raise BenchError("the load client cannot be built")
        elif not self.binary.exists():
            raise BenchError("the load client is not built, and there is no cargo")

    def run(
        self,
        servers: Sequence[Server],
        *,
        connections: int,
        size: int | None,
        rounds: int,
        burst_ms: int,
        warmup_ms: int,
        cpu: int | None = None,
        sleep: bool = False,
        options: Sequence[str] = (),
    ) -> list[LoadResult]:
        """Visit `servers` in turn; the results come in their order.

        The work is an echo of `size` bytes, unless `options`, further ones of the client's command
        line, name another.
        """
        command = [str(self.binary)]
        for server in servers:
            command += ["--target", server.target]
        command += ["--connections", str(connections)]
        if size is not None:
            command += ["--size", str(size)]
        command += ["--rounds", str(rounds), "--burst-ms", str(burst_ms)]
        command += ["--warmup-ms", str(warmup_ms), *options]
        if cpu is not None:
            command += ["--cpu", str(cpu)]
        if sleep:
            command.append("--sleep")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise BenchError(lines[0].removeprefix("kloop-load: "))
        results = cast("list[LoadResult]", json.loads(done.stdout)["targets"])
        for result in results:
            if result["requests"] == 0:
                raise BenchError(f"the server '{result['name']}' answered nothing")
        return results


def run_script(
    *command: str | Path,
    environment: Mapping[str, str] | None = None,
    timeout: float = 120.0,
) -> Any:
    """Run a script of the servers' folder to its end and read the JSON that it prints."""
    script, *arguments = map(str, command)
    try:
        done = subprocess.run(
            [sys.executable, str(SERVERS / script), *arguments],
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{script} took longer than {timeout:.0f} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise BenchError(lines[-1])
    return json.loads(done.stdout)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Let the body fail once it has taken too long."""

    def give_up(_number: int, _frame: object) -> None:
        raise TookTooLong(f"took longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def cpus() -> list[int]:
    """List the CPUs this process may use."""
    return sorted(os.sched_getaffinity(0))


def end_on_signals() -> None:
    """Let a polite signal unwind the stack, so that the servers are stopped."""

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
