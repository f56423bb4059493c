"""Pipes: this process is the peer of a process on each loop."""

from __future__ import annotations

import array
import fcntl
import os
import termios
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import figures
from comparing import show
from contenders import AGAIN, KLOOP
from figures import Spread
from harness import BenchError, Server
from section import Comparison, Section, Table

if TYPE_CHECKING:
    from contenders import Contender
    from run import Run

TITLE = "Pipes"
QUESTION = "What does an echo through pairs of pipes cost, and reading and writing one pipe?"
SECONDS = (60.0, 6.0)

MESSAGE = b"m" * 1024
CHUNK = bytes(1024 * 1024)
GB = 1e9


@dataclass(frozen=True)
class Case:
    """What is measured: the kind of server, and its number of pairs of pipes."""

    kind: str
    pairs: int

    @property
    def title(self) -> str:
        """What the table calls it."""
        return {
            "echo": f"echo of 1 KiB through {self.pairs} pair(s), us/message",
            "sink": "reading one pipe, ms/GB",
            "source": "writing one pipe, ms/GB",
        }[self.kind]

    def cost(self, cpu: float, work: float) -> float:
        """Turn seconds for an amount of work into the unit of the title."""
        return cpu / work * 1e6 if self.kind == "echo" else cpu / (work / GB) * 1e3


CASES = (Case("echo", 1), Case("echo", 10), Case("sink", 1), Case("source", 1))


class PipeServer(Server):
    """A process that echoes, takes or gives data through pipes."""

    def __init__(self, run: Run, contender: Contender, case: Case) -> None:
        """Prepare it."""
        self._inward = [os.pipe() for _ in range(case.pairs)]
        self._outward = [os.pipe() for _ in range(case.pairs)]
        theirs = [
            (reading, writing)
            for (reading, _), (_, writing) in zip(self._inward, self._outward, strict=True)
        ]
        super().__init__(
            contender.name,
            "pipes.py",
            *("--loop", contender.loop, "--cpu", str(run.server_cpu), "--kind", case.kind),
            *(f"{reading}:{writing}" for reading, writing in theirs),
            environment=contender.environment,
            descriptors=[fd for pair in theirs for fd in pair],
        )
        self._burst = {"echo": self._echo, "sink": self._sink, "source": self._source}[case.kind]

    def __enter__(self) -> Self:
        """Start it."""
        try:
            super().__enter__()
        except BaseException:
            self._close(ours=True)
            raise
        finally:
            self._close(ours=False)
        return self

    def __exit__(self, *details: object) -> None:
        """Stop it."""
        super().__exit__(*details)
        self._close(ours=True)

    def _close(self, *, ours: bool) -> None:
        for (reading, writing), (back, forth) in zip(self._inward, self._outward, strict=True):
            for fd in (writing, back) if ours else (reading, forth):
                os.close(fd)

    def burst(self, seconds: float) -> tuple[float, float]:
        """Use it for a while: its processor time in s, and messages or bytes."""
        cpu = self.cpu_seconds()
        work = self._burst(time.perf_counter() + seconds)
        return self.cpu_seconds() - cpu, work

    def _echo(self, end: float) -> int:
        pairs = [
            (writing, reading)
            for (_, writing), (reading, _) in zip(self._inward, self._outward, strict=True)
        ]
        count = 0
        while time.perf_counter() < end:
            for writing, _ in pairs:
                os.write(writing, MESSAGE)
            for _, reading in pairs:
                size = 0
                while size < len(MESSAGE):
                    size += len(self._got(os.read(reading, len(MESSAGE))))
            count += len(pairs)
        return count

    def _sink(self, end: float) -> int:
        _, writing = self._inward[0]
        size = 0
        while time.perf_counter() < end:
            size += os.write(writing, CHUNK)
        left = array.array("i", [1])
        while left[0]:
            fcntl.ioctl(writing, termios.FIONREAD, left)
        return size

    def _source(self, end: float) -> int:
        reading, _ = self._outward[0]
        room = [bytearray(len(CHUNK))]
        size = 0
        while time.perf_counter() < end:
            size += self._got(os.readv(reading, room))
        return size

    def _got[T: (int, bytes)](self, data: T) -> T:
        if not data:
            raise BenchError(f"the server '{self.name}' closed its pipe")
        return data


def measure(run: Run) -> dict[str, Any]:
    """Visit the processes of each case in turn."""
    cases = run.pick(CASES, CASES[1:2])
    rounds = run.pick(40, 10)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {run.client_cpu})
    try:
        return {
            "rounds": rounds,
            "cases": [
                {**asdict(case), "costs": _visit(run, case, rounds, number, len(cases))}
                for number, case in enumerate(cases)
            ],
        }
    finally:
        os.sched_setaffinity(0, before)


def _visit(run: Run, case: Case, rounds: int, number: int, total: int) -> dict[str, list[float]]:
    run.step(number, total, case.title)
    with run.alive([PipeServer(run, each, case) for each in run.contenders]) as servers:
        for server in servers:
            server.burst(0.1)
        costs: dict[str, list[float]] = {server.name: [] for server in servers}
        for turn in range(rounds):
            for server in servers if turn % 2 == 0 else servers[::-1]:
                costs[server.name].append(case.cost(*server.burst(0.02)))
        return costs


def render(data: dict[str, Any]) -> Section:
    """Make one table."""
    cases = data["cases"]
    names = list(dict.fromkeys(name for case in cases for name in case["costs"] if name != AGAIN))
    rows, comparisons = [], []
    for case in cases:
        costs: dict[str, list[float]] = case["costs"]
        medians = {name: Spread.of(found).median for name, found in costs.items()}
        peer = figures.best(medians, [name for name in names if name != KLOOP])
        title = Case(case["kind"], case["pairs"]).title
        row = [title, *(_cost(medians.get(name), name == peer) for name in names)]
        noise = figures.ratio(costs[AGAIN], costs[KLOOP]) if AGAIN in costs else None
        ratio = figures.ratio(costs[KLOOP], costs[peer]) if peer and KLOOP in costs else None
        if peer and ratio:
            what, _, unit = title.rpartition(", ")
            comparisons.append(
                Comparison(
                    f"pipes, {what}", unit, medians[KLOOP], peer, medians[peer], ratio, noise
                )
            )
        rows.append([*row, show(ratio), show(noise)])
    note = (
        f"Processor time of the process, median over {data['rounds']} rounds of 20 ms. The two "
        "ends of a pipe wake each other, so that one pair and bulk data vary much."
    )
    head = ["what", *(f">{name}" for name in names), ">kloop / best peer", f">{AGAIN} / kloop"]
    return Section([Table(head, rows, notes=[note])], comparisons=comparisons)


def _cost(value: float | None, is_best: bool) -> str:
    if value is None:
        return ""
    return f"**{value:.2f}**" if is_best else f"{value:.2f}"
