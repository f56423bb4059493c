"""Compare kloop, uvloop and asyncio as echo servers, in one run: TCP, Unix streams or UDP.

Measured first: the processor time a server spends per request, and its ratio to the
reference loop (uvloop), taken round by round. Measured second: requests per second and
latency, which depend on the load client as well and mean little on a busy machine. All
servers stay on one CPU and the load client spins on another. The reference runs twice,
as two processes; how far its second line is from 1.00 is the noise of the run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import harness
from harness import BenchError, LoadClient, LoadResult, Server, Spread

KINDS = ("protocol", "buffered", "streams")
TRANSPORTS = ("tcp", "unix", "udp")
LOOPS = ("kloop", "uvloop", "asyncio")

# asyncio allocates its largest read for each read. glibc may fetch that from the kernel
# and return it each time, at several times the cost of the echo, depending on the state
# of the heap. With these limits raised it does not.
ASYNCIO_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "268435456",
}

HEADS = (
    "kind",
    ">connections x bytes",
    "loop",
    ">server CPU us/request",
    ">ratio (quartiles)",
    ">requests/s",
    ">p50 us",
    ">p99 us",
    ">lost",
    ">errors",
)


@dataclass(frozen=True)
class Contender:
    """A line of the comparison: a loop, or the reference once more."""

    loop: str
    label: str
    missing: str | None = None


def main() -> int:
    """Run the comparison and print it."""
    settings = _parse()
    harness.end_on_signals()
    facts = harness.environment()
    contenders, reference = _contenders(settings.loops, settings.reference)
    client = LoadClient()

    print(f"{harness.describe_environment(facts)}.\n", flush=True)
    print(harness.table_head(HEADS), flush=True)
    cells: list[dict[str, Any]] = []
    for kind in settings.kinds:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            servers = [
                stack.enter_context(_server(kind, contender, settings, folder))
                for contender in contenders
                if not contender.missing
            ]
            for connections in settings.connections:
                for size in settings.sizes:
                    results = client.run(
                        servers,
                        connections=connections,
                        size=size,
                        rounds=settings.rounds,
                        burst_ms=settings.burst_ms,
                        warmup_ms=settings.warmup_ms,
                        cpu=settings.client_cpu,
                    )
                    cell = _cell(results, reference)
                    named = (f"{settings.transport} {kind}", f"{connections} x {size}")
                    for row in _rows(contenders, cell):
                        print(harness.table_row((*named, *row)), flush=True)
                    place = {"kind": kind, "connections": connections, "size": size}
                    cells.append({**place, "servers": cell})

    print(_notes(settings, reference))
    content = {
        "environment": facts,
        "settings": {**vars(settings), "json": None},
        "reference": reference,
        "asyncio_environment": ASYNCIO_ENVIRONMENT,
        "missing": {each.loop: each.missing for each in contenders if each.missing},
        "cells": cells,
    }
    harness.write_json(settings.json, content)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    first, *others = harness.cpus()
    parser.add_argument("--transport", choices=TRANSPORTS, default="tcp")
    parser.add_argument("--kinds", type=harness.names, default=["protocol"])
    parser.add_argument("--loops", type=harness.names, default=list(LOOPS))
    parser.add_argument("--reference", default="uvloop", choices=LOOPS)
    parser.add_argument("--connections", type=harness.numbers, default=[10, 100])
    parser.add_argument("--sizes", type=harness.numbers, default=[1024])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--burst-ms", type=int, default=25)
    parser.add_argument("--warmup-ms", type=int, default=200)
    parser.add_argument("--server-cpu", type=int, default=first)
    parser.add_argument("--client-cpu", type=int, default=others[0] if others else None)
    parser.add_argument("--json", type=Path, metavar="FILE")
    settings = parser.parse_args()
    for given, known in ((settings.kinds, KINDS), (settings.loops, LOOPS)):
        for name in given:
            if name not in known:
                parser.error(f"'{name}' is none of {', '.join(known)}")
    if settings.transport == "udp" and settings.kinds != ["protocol"]:
        parser.error("over UDP there is the protocol only")
    if settings.client_cpu in (None, settings.server_cpu):
        parser.error("the client needs a CPU of its own, for it spins")
    return settings


def _contenders(loops: list[str], wanted: str) -> tuple[list[Contender], str]:
    """Make the lines of the comparison, and choose the reference among those there."""
    found = [Contender(loop, loop, harness.missing(loop)) for loop in loops]
    here = [each.loop for each in found if not each.missing]
    if not here:
        raise BenchError("none of the loops can be imported")
    reference = wanted if wanted in here else here[-1]
    return [*found, Contender(reference, f"{reference} again")], reference


def _server(kind: str, contender: Contender, settings: argparse.Namespace, folder: str) -> Server:
    arguments = ["--loop", contender.loop, "--cpu", str(settings.server_cpu)]
    if settings.transport == "unix":
        arguments += ["--unix", f"{folder}/{contender.label.replace(' ', '-')}"]
    return Server(
        contender.label,
        "echo_datagrams.py" if settings.transport == "udp" else f"echo_{kind}.py",
        *arguments,
        environment=ASYNCIO_ENVIRONMENT if contender.loop == "asyncio" else {},
    )


def _cell(results: list[LoadResult], reference: str) -> dict[str, dict[str, Any]]:
    """Set each server's rounds against those of the reference."""
    by_name = {result["name"]: result for result in results}
    base = harness.cpu_per_request(by_name[reference])
    cell = {}
    for label, result in by_name.items():
        costs = harness.cpu_per_request(result)
        cell[label] = {
            "cpu_us_per_request": asdict(Spread.of(costs)),
            "ratio": asdict(Spread.of(harness.ratios(costs, base))),
            "load": result,
        }
    return cell


def _rows(contenders: list[Contender], cell: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for contender in contenders:
        if contender.missing:
            rows.append((contender.label, contender.missing, *[""] * 6))
            continue
        server = cell[contender.label]
        load: LoadResult = server["load"]
        rows.append(
            (
                contender.label,
                f"{server['cpu_us_per_request']['median']:.2f}",
                f"{Spread(**server['ratio']):.2f}",
                f"{load['requests_per_second']:,.0f}",
                f"{load['latency_us']['p50']:.0f}",
                f"{load['latency_us']['p99']:.0f}",
                str(load["lost"]),
                str(load["errors"]),
            )
        )
    return rows


def _notes(settings: argparse.Namespace, reference: str) -> str:
    variables = " ".join(f"{key}={value}" for key, value in ASYNCIO_ENVIRONMENT.items())
    return f"""
Lost: requests without a reply over UDP. Server CPU: median over {settings.rounds} rounds \
of {settings.burst_ms} ms. Ratio: to {reference}, round by round, median and quartiles; \
"{reference} again" is a second process of the same and shows the noise. Servers on CPU \
{settings.server_cpu}, client spinning on CPU {settings.client_cpu}. asyncio at its best: \
{variables}."""


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"echo.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
