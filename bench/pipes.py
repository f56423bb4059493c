"""Compare kloop, uvloop and asyncio on pipes, in one run.

Measured is the processor time that a process on each loop spends, and its ratio to the
reference loop (uvloop), taken round by round: per message of 1 KiB that it echoes
through one or ten pairs of pipes, and per GB that it reads from or writes to one pipe.
All processes stay on one CPU, and this one, which is their peer, on another. The
reference runs twice; how far its second line is from 1.00 is the noise of the run.
"""

from __future__ import annotations

import argparse
import array
import fcntl
import os
import sys
import termios
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import harness
from echo import ASYNCIO_ENVIRONMENT
from harness import BenchError, Server, Spread

LOOPS = ("kloop", "uvloop", "asyncio")
MESSAGE = b"m" * 1024
CHUNK = bytes(1024 * 1024)
GB = 1e9

HEADS = ("what", ">pairs", "loop", ">server CPU", ">ratio (quartiles)", ">rate")


@dataclass(frozen=True)
class Cell:
    """What is measured: the kind of server, and its number of pairs of pipes."""

    kind: str
    pairs: int

    @property
    def title(self) -> str:
        """What the table calls it."""
        return {"echo": "1 KiB echo, us/message", "sink": "reading, ms/GB"}.get(
            self.kind, "writing, ms/GB"
        )

    def cost(self, cpu: float, work: float) -> float:
        """Turn seconds for an amount of work into the unit of the title."""
        return cpu / work * 1e6 if self.kind == "echo" else cpu / (work / GB) * 1e3


CELLS = (Cell("echo", 1), Cell("echo", 10), Cell("sink", 1), Cell("source", 1))


class PipeServer(Server):
    """A process that echoes, takes or gives data through pipes."""

    def __init__(self, name: str, loop: str, cell: Cell, cpu: int) -> None:
        """Prepare a process on `loop` and `cpu`."""
        self._inward = [os.pipe() for _ in range(cell.pairs)]
        self._outward = [os.pipe() for _ in range(cell.pairs)]
        theirs = [
            (reading, writing)
            for (reading, _), (_, writing) in zip(self._inward, self._outward, strict=True)
        ]
        super().__init__(
            name,
            "pipes.py",
            *("--loop", loop, "--cpu", str(cpu), "--kind", cell.kind),
            *(f"{reading}:{writing}" for reading, writing in theirs),
            environment=ASYNCIO_ENVIRONMENT if loop == "asyncio" else {},
            descriptors=[fd for pair in theirs for fd in pair],
        )
        self._burst = {"echo": self._echo, "sink": self._sink, "source": self._source}[cell.kind]

    def __enter__(self) -> Self:
        """Start it."""
        super().__enter__()
        for (reading, _), (_, writing) in zip(self._inward, self._outward, strict=True):
            os.close(reading)
            os.close(writing)
        return self

    def __exit__(self, *details: object) -> None:
        """Stop it."""
        super().__exit__(*details)
        for (_, writing), (reading, _) in zip(self._inward, self._outward, strict=True):
            os.close(writing)
            os.close(reading)

    def burst(self, seconds: float) -> tuple[float, float, float]:
        """Use it for a while: its processor time in s, messages or bytes, and seconds."""
        cpu = self.cpu_seconds()
        start = time.perf_counter()
        work = self._burst(start + seconds)
        taken = time.perf_counter() - start
        return self.cpu_seconds() - cpu, work, taken

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
                    size += len(os.read(reading, len(MESSAGE)))
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
            size += os.readv(reading, room)
        return size


def main() -> int:
    """Run the comparison and print it."""
    settings = _parse()
    harness.end_on_signals()
    facts = harness.environment()
    here = [loop for loop in settings.loops if not harness.missing(loop)]
    if not here:
        raise BenchError("none of the loops can be imported")
    reference = settings.reference if settings.reference in here else here[-1]
    os.sched_setaffinity(0, {settings.client_cpu})

    print(f"{harness.describe_environment(facts)}.\n", flush=True)
    print(harness.table_head(HEADS), flush=True)
    results = []
    for cell in CELLS:
        if cell.kind not in settings.kinds:
            continue
        rounds = _measure(cell, here, reference, settings)
        base = [cell.cost(cpu, work) for cpu, work, _ in rounds[reference]]
        for label, bursts in rounds.items():
            costs = [cell.cost(cpu, work) for cpu, work, _ in bursts]
            cost, ratio = Spread.of(costs), Spread.of(harness.ratios(costs, base))
            rate = Spread.of([work / taken for _, work, taken in bursts]).median
            shown = f"{rate:,.0f}/s" if cell.kind == "echo" else f"{rate / GB:.2f} GB/s"
            row = (cell.title, str(cell.pairs), label, f"{cost.median:.2f}", f"{ratio:.2f}", shown)
            print(harness.table_row(row), flush=True)
            results.append(
                {**asdict(cell), "loop": label, "cost": asdict(cost), "ratio": asdict(ratio)}
            )
    print(
        f"\nMedian over {settings.rounds} rounds of {settings.burst_ms} ms; ratio to {reference}, "
        f"round by round. Servers on CPU {settings.server_cpu}, peer on CPU {settings.client_cpu}. "
        "asyncio at its best, as for echo.py."
    )
    content = {"environment": facts, "settings": {**vars(settings), "json": None}}
    harness.write_json(settings.json, {**content, "reference": reference, "cells": results})
    return 0


def _measure(
    cell: Cell, loops: list[str], reference: str, settings: argparse.Namespace
) -> dict[str, list[tuple[float, float, float]]]:
    labels = {loop: loop for loop in loops} | {f"{reference} again": reference}
    with ExitStack() as stack:
        servers = [
            stack.enter_context(PipeServer(label, loop, cell, settings.server_cpu))
            for label, loop in labels.items()
        ]
        for server in servers:
            server.burst(settings.warmup_ms / 1e3)
        rounds: dict[str, list[tuple[float, float, float]]] = {label: [] for label in labels}
        for number in range(settings.rounds):
            for server in servers if number % 2 == 0 else reversed(servers):
                rounds[server.name].append(server.burst(settings.burst_ms / 1e3))
    return rounds


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    first, *others = harness.cpus()
    parser.add_argument("--kinds", type=harness.names, default=["echo", "sink", "source"])
    parser.add_argument("--loops", type=harness.names, default=list(LOOPS))
    parser.add_argument("--reference", default="uvloop", choices=LOOPS)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--burst-ms", type=int, default=25)
    parser.add_argument("--warmup-ms", type=int, default=200)
    parser.add_argument("--server-cpu", type=int, default=first)
    parser.add_argument("--client-cpu", type=int, default=others[0] if others else None)
    parser.add_argument("--json", type=Path, metavar="FILE")
    settings = parser.parse_args()
    if settings.client_cpu in (None, settings.server_cpu):
        parser.error("the peer needs a CPU of its own")
    return settings


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"pipes.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
