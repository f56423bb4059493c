"""Many cores: `kloop.serve_per_core` against processes."""

from __future__ import annotations

import compileall
import http.client
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comparing
import contenders
import figures
import harness
import memory
from comparing import show
from contenders import AGAIN, KLOOP
from figures import Spread
from harness import BenchError, Server
from many import Family, SharedPort
from section import Comparison, Goal, Panel, Plot, Section, Series, Table

import kloop

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from run import Run

    type Make = Callable[[Mapping[str, str]], Server]

TITLE = "Many cores"
QUESTION = (
    "What does `serve_per_core` give on two cores, against two uvloop processes that share a port "
    "and granian with two workers: processor time per request, throughput of handlers that "
    "compute, memory, time to start, and how evenly connections are spread?"
)
SECONDS = (110.0, 22.0)

CORES = (1, 2)
PROCESSES = "kloop, processes"
UVLOOP = "uvloop"
GRANIAN = "granian"
# The same handler: a Protocol that answers any request with the same bytes.
ALIKE = (KLOOP, PROCESSES, UVLOOP)

GREETING = ("--get", "/")
WORK_US = 300.0
CONNECTIONS = 16
SPREAD_CONNECTIONS = 100

# How memory is counted, in the words of memory.Memory.
MEMORIES = {"rss": "resident memory", "together": "memory not shared"}

# What the project wants.
MEMORY_SHARE = 0.5
SPEED_UP = 1.85


def measure(run: Run) -> dict[str, Any]:
    """Measure servers on one core and on two, with greetings and with work."""
    if len(run.cpus) < max(CORES):
        raise BenchError(f"{max(CORES)} CPUs are needed")
    # As an installer does, also where Python is told not to: compiling costs memory and time.
    for folder in (Path(kloop.__file__).parent, harness.SERVERS):
        compileall.compile_dir(folder, quiet=2)
    servers = _servers(run)
    work = _calibrate()
    steps = 4
    run.step(0, steps, "starting again and again")
    starts = _starts(servers, run.pick(5, 1))
    with run.alive(make({}) for make in servers) as here:
        run.step(1, steps, "greetings")
        # The client sleeps and goes where there is room: the servers may want every CPU.
        greetings = run.visit(
            here,
            connections=CONNECTIONS,
            size=None,
            options=GREETING,
            rounds=run.pick(30, 6),
            burst_ms=50,
            sleep=True,
            pinned=False,
        )
        held = {server.name: asdict(memory.read(server.pids)) for server in here}
        spread = {server.name: _spread(server) for server in here}
    with run.alive(make({"KLOOP_BENCH_WORK": str(work)}) for make in servers) as here:
        run.step(2, steps, f"work of {WORK_US:.0f} us")
        computing = run.visit(
            here,
            connections=CONNECTIONS,
            size=None,
            options=GREETING,
            rounds=run.pick(12, 3),
            burst_ms=run.pick(500, 250),
            sleep=True,
            pinned=False,
        )
    return {
        "cpus": len(run.cpus),
        "work": work,
        "starts": starts,
        "greetings": greetings,
        "memory": held,
        "spread": spread,
        "computing": computing,
    }


def named(name: str, cores: int) -> str:
    """What a server on so many cores is called."""
    return f"{name} x {cores}"


def _servers(run: Run) -> list[Make]:
    """Functions that prepare the servers, given what is to be in their environment."""
    here = {each.name for each in run.contenders}
    found: list[Make] = []
    for cores in CORES:
        found.append(partial(_per_core, KLOOP, cores, "threads"))
        found.append(partial(_per_core, PROCESSES, cores, "processes"))
        if UVLOOP in here:
            found.append(partial(_uvloop, run.cpus[:cores]))
        if contenders.version(GRANIAN):
            found.append(partial(_granian, cores))
    return [*found, partial(_per_core, AGAIN, max(CORES), "threads")]


def _per_core(name: str, cores: int, workers: str, environment: Mapping[str, str]) -> Server:
    command = ("per_core.py", str(cores), workers)
    return Family(named(name, cores), *command, environment=environment)


def _uvloop(cpus: list[int], environment: Mapping[str, str]) -> Server:
    return SharedPort(named(UVLOOP, len(cpus)), UVLOOP, cpus, environment=environment)


def _granian(workers: int, environment: Mapping[str, str]) -> Server:
    command = ("http_granian.py", str(workers), "uvloop")
    return Family(named(GRANIAN, workers), *command, workers=workers, environment=environment)


def _calibrate() -> int:
    """Find how much work takes `WORK_US`, in a process like the servers."""
    command = [sys.executable, str(harness.SERVERS / "hello.py"), str(WORK_US)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError("the work per request cannot be calibrated")
    return int(done.stdout.removeprefix("WORK "))


def _starts(servers: list[Make], times: int) -> dict[str, list[float]]:
    """Milliseconds from the start of a server until all of its workers listen."""
    found: dict[str, list[float]] = {}
    for _ in range(times):
        for make in servers:
            server = make({})
            began = time.perf_counter()
            try:
                with server:
                    elapsed = time.perf_counter() - began
            except BenchError:
                continue  # its absence is noted where it matters
            found.setdefault(server.name, []).append(elapsed * 1e3)
    return found


def _spread(server: Server) -> list[int]:
    """How many of `SPREAD_CONNECTIONS` connections, opened one by one, each worker has."""
    counts: Counter[bytes] = Counter()
    host, _, port = server.address.partition(":")
    with ExitStack() as stack:
        for _ in range(SPREAD_CONNECTIONS):
            connection = http.client.HTTPConnection(host, int(port), timeout=5)
            stack.enter_context(closing(connection))
            connection.request("GET", "/who")
            counts[connection.getresponse().read()] += 1
    return sorted(counts.values(), reverse=True)


def render(data: dict[str, Any]) -> Section:
    """Make a table of all servers, a picture, and the goals."""
    section = Section(
        tables=[_costs(data), _footprints(data)],
        plots=[_throughput(data), _memory(data)],
    )
    greetings = data["greetings"]
    for cores in CORES:
        ours, theirs = named(KLOOP, cores), named(UVLOOP, cores)
        ratio = comparing.ratio(greetings, ours, theirs)
        if ratio is None:
            continue
        medians = comparing.costs(greetings)
        noise = comparing.ratio(greetings, named(AGAIN, cores), ours)
        what = f"serve_per_core, {cores} core{'s' * (cores > 1)}"
        section.comparisons.append(
            Comparison(what, "us", medians[ours], theirs, medians[theirs], ratio, noise)
        )
        if cores == max(CORES):
            what = f"{ours} against {theirs} processes: CPU per request"
            section.goals.append(Goal(what, ratio.median, 1.0))
    for kind, name in MEMORIES.items():
        added = [_added(data, server, kind) for server in (KLOOP, UVLOOP)]
        if all(added):
            what = f"{name} per added core, serve_per_core / uvloop processes"
            section.goals.append(Goal(what, added[0] / added[1], MEMORY_SHARE))
    if speed_up := _speed_up(data, KLOOP):
        what = "handlers that compute, serve_per_core on 2 cores / on 1"
        section.goals.append(Goal(what, speed_up.median, SPEED_UP, at_least=True))
    return section


def _names(data: dict[str, Any]) -> list[str]:
    here = (*ALIKE, GRANIAN, AGAIN)
    return [
        named(name, cores)
        for name in here
        for cores in CORES
        if named(name, cores) in data["memory"]
    ]


def _costs(data: dict[str, Any]) -> Table:
    head = [
        "server x cores",
        ">greeting: CPU us/request",
        ">to uvloop",
        ">requests/s",
        f">{WORK_US:.0f} us of work: requests/s",
        ">to one core",
        ">CPUs used",
    ]
    rows = []
    for name in _names(data):
        server, _, cores = name.rpartition(" x ")
        row = [name]
        if result := data["greetings"].get(name):
            ratio = comparing.ratio(data["greetings"], name, named(UVLOOP, int(cores)))
            row += [
                f"{Spread.of(figures.cpu_per_request(result)).median:.2f}",
                show(ratio) if server in (*ALIKE, AGAIN) and server != UVLOOP else "",
                f"{Spread.of(figures.rates(result)).median:,.0f}",
            ]
        else:
            row += [""] * 3
        if result := data["computing"].get(name):
            row += [
                f"{Spread.of(figures.rates(result)).median:,.0f}",
                show(_speed_up(data, server)) if cores != "1" else "",
                f"{Spread.of(figures.cpus_used(result)).median:.2f}",
            ]
        else:
            row += [""] * 3
        rows.append(row)
    client = _client_share(data["computing"])
    notes = [
        "kloop and uvloop run the same Protocol, which answers any request with the same bytes; "
        "granian parses HTTP and calls an ASGI application, so its requests are more work. "
        f"{CONNECTIONS} connections, the client sleeps while it waits. CPUs used: the processor "
        "time over the length of the bursts, for the handlers that compute. There the client took "
        f"{client:.0%} of one of the {data['cpus']} CPUs, which a ratio to one core lacks. There "
        "is no such ratio where the one core had less than a CPU, because something else ran."
    ]
    return Table(head, rows, "Processor time and throughput", notes)


def _client_share(results: dict[str, Any]) -> float:
    entries = [entry for result in results.values() for entry in result["rounds"]]
    used = sum(entry["client_cpu_us"] for entry in entries)
    return float(used / 1e6 / sum(entry["seconds"] for entry in entries))


def _speed_up(data: dict[str, Any], name: str) -> Spread | None:
    base = data["computing"].get(named(KLOOP if name == AGAIN else name, min(CORES)))
    result = data["computing"].get(named(name, max(CORES)))
    if base is None or result is None or figures.client_was_the_limit(base):
        return None
    return figures.ratio(figures.rates(result), figures.rates(base))


def _added(data: dict[str, Any], name: str, kind: str) -> float:
    """Bytes of memory that the last core has added."""
    few, many = (data["memory"].get(named(name, cores)) for cores in CORES)
    return float(many[kind] - few[kind]) if few and many else 0.0


def _footprints(data: dict[str, Any]) -> Table:
    head = [
        "server x cores",
        ">RSS summed, MiB",
        ">per added core",
        ">not shared, MiB",
        ">per added core",
        ">ms to start (quartiles)",
        ">connections of each worker",
    ]
    rows = []
    for name in _names(data):
        server, _, cores = name.rpartition(" x ")
        held = data["memory"][name]
        added = [_added(data, server, kind) if cores != "1" else 0.0 for kind in MEMORIES]
        starts = data["starts"].get(name)
        rows.append(
            [
                name,
                f"{held['rss'] / 2**20:.1f}",
                f"{added[0] / 2**20:.1f}" if added[0] else "",
                f"{held['together'] / 2**20:.1f}",
                f"{added[1] / 2**20:.1f}" if added[1] else "",
                f"{Spread.of(starts):.0f}" if starts else "",
                " ".join(map(str, data["spread"].get(name, []))),
            ]
        )
    notes = [
        "RSS summed counts what processes share for each of them. Not shared: what belongs to no "
        "file, summed, and the program and library files that one process has mapped, which are in "
        "memory once for all. To start: from the start of the first process until all workers "
        f"accept connections. Connections: {SPREAD_CONNECTIONS}, opened one by one and kept."
    ]
    return Table(head, rows, "Memory, start, spread", notes)


def _throughput(data: dict[str, Any]) -> Plot:
    series = []
    for name in (*ALIKE, GRANIAN):
        results = [data["computing"].get(named(name, cores)) for cores in CORES]
        spreads = [Spread.of(figures.rates(result)) if result else None for result in results]
        if any(spreads):
            series.append(
                Series(
                    name,
                    [spread.median if spread else None for spread in spreads],
                    [spread.lower if spread else None for spread in spreads],
                    [spread.upper if spread else None for spread in spreads],
                )
            )
    places = [f"{cores} core{'s' * (cores > 1)}" for cores in CORES]
    panel = Panel("", "", "requests/s", places, series)
    title = f"Handlers that compute for {WORK_US:.0f} us: throughput on one core and on two"
    return Plot("cores-throughput", title, "bars", [panel])


def _memory(data: dict[str, Any]) -> Plot:
    series = []
    for name in (*ALIKE, GRANIAN):
        held = [data["memory"].get(named(name, cores)) for cores in CORES]
        if any(held):
            series.append(
                Series(name, [each["together"] / 2**20 if each else None for each in held])
            )
    places = [f"{cores} core{'s' * (cores > 1)}" for cores in CORES]
    panel = Panel("", "", "MiB", places, series)
    return Plot("cores-memory", "Memory of a whole server on one core and on two", "bars", [panel])
