"""One run of the suite: its settings, its contenders, and how far it is."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import figures
import harness
from harness import BenchError, LoadResult, Server

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from contenders import Contender
    from harness import LoadClient

# How long a server may keep a connection or a reply waiting.
PATIENCE_MS = 2000


@dataclass
class Progress:
    """Lines on standard error that say how far the run is and how long it may take."""

    # Expected seconds of each cell, in order.
    expected: dict[str, float]
    started: float = field(default_factory=time.monotonic)
    done: float = 0.0
    cell: str = ""
    shown: float = 0.0

    def begin(self, cell: str) -> None:
        """Begin `cell`."""
        self.cell = cell
        self.step(0, 1, "begins", always=True)

    def end(self) -> None:
        """Count the cell in hand as done."""
        self.done += self.expected[self.cell]

    def step(self, done: int, total: int, what: str, *, always: bool = False) -> None:
        """Say that `done` of `total` steps of the cell in hand are done, and what is next."""
        now = time.monotonic()
        if not always and now - self.shown < (0.2 if sys.stderr.isatty() else 5.0):
            return
        self.shown = now
        elapsed = now - self.started
        finished = self.done + self.expected[self.cell] * done / total
        # Trust the estimates at first and the clock later.
        whole = sum(self.expected.values())
        pace = (elapsed + 10) / (finished + 10)
        left = (whole - finished) * pace
        line = f"[{_clock(elapsed)}, about {_clock(left)} left] {self.cell}: {what}"
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line}", end="" if not always else "\n", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


@dataclass
class Run:
    """What a cell needs to measure."""

    quick: bool
    # Servers of one loop stay on the first, the load client on the second.
    server_cpu: int
    client_cpu: int
    cpus: list[int]
    client: LoadClient
    # kloop first, its second copy last.
    contenders: list[Contender]
    progress: Progress
    # Why a server could not take part in a measurement: both to the reason.
    failures: dict[str, str] = field(default_factory=dict)
    # Bursts of a client that spins, and those of them in which something else took its CPU.
    bursts: int = 0
    disturbed: int = 0

    def pick[T](self, full: T, quick: T) -> T:
        """Choose by the kind of run."""
        return quick if self.quick else full

    def step(self, done: int, total: int, what: str) -> None:
        """Show that `done` of `total` steps of this cell are done."""
        self.progress.step(done, total, what)

    @contextmanager
    def alive[S: Server](self, servers: Iterable[S]) -> Iterator[list[S]]:
        """Start `servers`; those that do not listen, or never rest, are left out and noted."""
        with ExitStack() as stack:
            here: list[S] = []
            for server in servers:
                try:
                    stack.enter_context(server)
                    here.append(server)
                except BenchError as error:
                    self.failures[server.name] = str(error)
            for server in harness.spinning(here):
                self.failures[server.name] = f"the server '{server.name}' spins while idle"
                server.stop()
                here.remove(server)
            if not here:
                raise BenchError("; ".join(self.failures.values()) or "no servers")
            yield here

    def visit(
        self,
        servers: Sequence[Server],
        *,
        connections: int,
        size: int | None,
        rounds: int,
        burst_ms: int = 20,
        warmup_ms: int = 100,
        sleep: bool = False,
        pinned: bool = True,
        options: Sequence[str] = (),
    ) -> dict[str, LoadResult]:
        """Visit `servers` in turn and return the results by name.

        Where that fails, each is tried alone, those that fail are noted and left out, and the
        others are visited again.
        """

        def visit(servers: Sequence[Server], rounds: int, warmup_ms: int) -> list[LoadResult]:
            return self.client.run(
                servers,
                connections=connections,
                size=size,
                rounds=rounds,
                burst_ms=burst_ms,
                warmup_ms=warmup_ms,
                cpu=self.client_cpu if pinned else None,
                sleep=sleep,
                options=("--timeout-ms", str(PATIENCE_MS), *options),
            )

        try:
            results = visit(servers, rounds, warmup_ms)
        except BenchError as failure:
            place = f"{connections} connections" + (f" x {size} B" if size else "")
            good = []
            for server in servers:
                try:
                    visit([server], 1, warmup_ms)
                except BenchError as error:
                    self.failures[f"{server.name}, {place}"] = str(error)
                else:
                    good.append(server)
            if not good:
                raise failure from None
            # If none fails alone, it may have been bad luck.
            results = visit(good, rounds, warmup_ms)
        if not sleep:
            self.bursts += sum(len(result["rounds"]) for result in results)
            self.disturbed += sum(figures.disturbed(result) for result in results)
        return {result["name"]: result for result in results}


def two_cpus() -> tuple[int, int]:
    """Choose a CPU for the servers and another for the client."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        raise BenchError("the load client needs a CPU of its own, for it spins: 2 are needed")
    return cpus[0], cpus[1]


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes}:{seconds:02}"
