"""Servers of several processes, each of them one line of a comparison."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

import memory
from harness import START_SECONDS, BenchError, Server

if TYPE_CHECKING:
    from collections.abc import Mapping


class Family(Server):
    """A server that may start processes of its own, which count as well.

    Those of `workers` each say LISTENS when they are there.
    """

    def __init__(
        self,
        name: str,
        *command: str,
        workers: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare `command`."""
        super().__init__(name, *command, environment=environment)
        self._workers = workers

    def __enter__(self) -> Self:
        """Start the server and wait until all its workers are there."""
        super().__enter__()
        give_up = time.monotonic() + START_SECONDS
        # The first is not among the further lines.
        while sum(line.startswith("LISTENS ") for line in self.lines) < self._workers - 1:
            if time.monotonic() > give_up or not self.alive():
                self.stop()
                raise BenchError(f"not all workers of '{self.name}' listen")
            time.sleep(0.001)
        return self

    @property
    def pids(self) -> list[int]:
        """The processes."""
        return memory.family(self.pid)


class SharedPort(Server):
    """Processes that share a port through SO_REUSEPORT, one on each of some CPUs."""

    def __init__(
        self,
        name: str,
        loop: str,
        cpus: list[int],
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare a process of `loop` for each of `cpus`, and find a port."""
        # Bound and not listening, it keeps the port free and gets no connections.
        self._reservation = socket.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reservation.bind(("127.0.0.1", 0))
        port = str(self._reservation.getsockname()[1])
        commands = [("shared_port.py", loop, str(cpu), port) for cpu in cpus]
        super().__init__(name, *commands[0], environment=environment)
        self._others = [Server(name, *command, environment=environment) for command in commands[1:]]

    def __enter__(self) -> Self:
        """Start all processes at once and wait until each of them listens."""
        try:
            with ThreadPoolExecutor(max(1, len(self._others))) as pool, self._reservation:
                started = [pool.submit(server.__enter__) for server in self._others]
                super().__enter__()
                for future in started:
                    future.result()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop all of them."""
        for server in self._others:
            server.stop()
        super().stop()

    @property
    def pids(self) -> list[int]:
        """The processes."""
        return [self.pid, *(server.pid for server in self._others)]
