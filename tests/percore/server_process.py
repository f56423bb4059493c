"""Servers in child processes: their start, their end, and conversations with them."""

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent.parent / "examples"

PATIENCE = 20.0
"""Seconds for anything that has to happen."""

CPUS = sorted(os.sched_getaffinity(0))

PROGRAM = """\
import json

import kloop


def ready(addresses):
    print("ready", json.dumps(addresses), flush=True)


def serve(handler, *arguments, **options):
    options = {{"port": 0, "cores": 2, "on_ready": ready}} | options
    kloop.serve_per_core(handler, *arguments, **options)


{before}
serve({handler}, {arguments})
{after}
"""

Serve = Callable[..., "Server"]


def program(handler: str, arguments: str = "", *, before: str = "", after: str = "") -> str:
    """The source of a program that calls serve_per_core, with code before and after the call."""
    return PROGRAM.format(handler=handler, arguments=arguments, before=before, after=after)


@dataclass
class End:
    """How a child ended."""

    status: int
    """As subprocess gives it: the negative number of the signal that killed it."""
    output: list[str]
    """The lines of standard output that the test has not taken."""
    errors: str
    """All of standard error."""

    def __post_init__(self) -> None:
        self.last_line = self.errors.rstrip().rpartition("\n")[2]


class Server:
    """A child process that serves. At the end of the body it must end well, or have been ended."""

    address: tuple[str, int]
    """Of the first listening socket."""
    addresses: list[Any]

    def __init__(self, arguments: Sequence[str]) -> None:
        self._command = [sys.executable, "-X", "faulthandler", *arguments]
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._end: End | None = None

    def __enter__(self) -> Self:
        self._errors = tempfile.TemporaryFile("w+")
        path = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if self._end is None and kind is None:
                assert self.stop().errors == ""
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join()
            if kind is not None:
                print(self.errors(), file=sys.stderr)
            self._errors.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    # The process

    @property
    def pid(self) -> int:
        return self.process.pid

    def next_line(self) -> str:
        """The next line of standard output."""
        line = self._lines.get(timeout=PATIENCE)
        if line is None:
            self._lines.put(None)  # for end()
        assert line is not None, f"the child has ended: {self.errors()}"
        return line

    def errors(self) -> str:
        """What standard error has got so far."""
        # pread leaves the position alone, which the child shares.
        size = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), size, 0).decode()

    def wait_until_ready(self) -> None:
        word, _, rest = self.next_line().partition(" ")
        assert word == "ready"
        self.addresses = json.loads(rest)
        self.address = self.addresses[0][0], self.addresses[0][1]

    def wait_for_error(self, text: str) -> None:
        """Return once standard error contains text."""
        wait_until(lambda: text in self.errors())

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> End:
        """Wait for the process to end by itself."""
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # faulthandler shows where it hangs
            self.process.wait()
            raise AssertionError(f"the child does not end:\n{self.errors()}") from None
        self._reader.join()
        output = []
        while (line := self._lines.get()) is not None:
            output.append(line)
        self._end = End(status, output, self.errors())
        return self._end

    def stop(self, number: int = signal.SIGTERM) -> End:
        """Send a signal; the process must end with status 0."""
        self.send_signal(number)
        end = self.end()
        assert end.status == 0, end
        return end

    def open_fds(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def resident_bytes(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    # Conversations

    def connect(self, address: tuple[str, int] | None = None, **options: Any) -> socket.socket:
        return socket.create_connection(address or self.address, PATIENCE, **options)

    def refuses(self) -> bool:
        """Whether a connection is refused now."""
        try:
            self.connect().close()
        except (ConnectionRefusedError, ConnectionResetError):
            return True
        return False

    @contextlib.contextmanager
    def one_client_per_core(self, cores: int) -> Iterator[list["Client"]]:
        """Connections to handlers.calls, one to each core, in the order of the cores."""
        with contextlib.ExitStack() as stack:
            found: dict[int, Client] = {}
            while len(found) < cores:
                # Those that met a core twice stay open, so that the other cores have fewer.
                client = stack.enter_context(Client(self.connect()))
                found.setdefault(client.call("core")["index"], client)
            yield [found[index] for index in range(cores)]


class Client:
    """A connection to handlers.calls, which runs functions of handlers.py in a worker."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._lines = sock.makefile()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._lines.close()
        self.sock.close()

    def start(self, name: str, *arguments: Any) -> None:
        """Call a function without waiting for its result."""
        self.sock.sendall(json.dumps([name, *arguments]).encode() + b"\n")

    def result(self) -> Any:
        line = self._lines.readline()
        assert line, "the connection is closed"
        kind, value = json.loads(line)
        assert kind == "result", value
        return value

    def call(self, name: str, *arguments: Any) -> Any:
        self.start(name, *arguments)
        return self.result()

    def wait_until_closed(self) -> None:
        with contextlib.suppress(ConnectionError):
            assert self.sock.recv(1) == b""


def echo(sock: socket.socket, data: bytes) -> None:
    """Send data and check that it comes back."""
    sock.sendall(data)
    assert receive(sock, len(data)) == data


def receive(sock: socket.socket, size: int) -> bytes:
    """size bytes, or what came before the end of the stream."""
    data = bytearray()
    while len(data) < size and (chunk := sock.recv(size - len(data))):
        data += chunk
    return bytes(data)


def is_closed(sock: socket.socket) -> bool:
    """Wait for the other end to close, or reset, the connection; data must not come."""
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


def wait_until(condition: Callable[[], bool]) -> None:
    """Ask until it is true: for what cannot be waited for."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit, "it does not come true"
        time.sleep(0.005)
