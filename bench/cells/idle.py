"""Many idle connections."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import comparing
import echoing
import figures
import loading
import memory
from comparing import show
from contenders import AGAIN, KLOOP, Contender
from echoing import NATIVE
from figures import Spread
from harness import BenchError
from loading import Held
from section import Comparison, Goal, Panel, Plot, Section, Series, Table

import kloop

if TYPE_CHECKING:
    from harness import LoadResult, Server
    from run import Run

TITLE = "Idle connections"
QUESTION = (
    "What does a server keep in memory for each idle connection, and what does a request on one "
    "active connection cost among them?"
)
SECONDS = (45.0, 6.0)

KINDS = {"protocol": "Protocol", "streams": "streams"}
WORK = ("--size", "64")


def measure(run: Run) -> dict[str, Any]:
    """Open the idle connections of all servers, and read their memory before and after."""
    loading.allow_open_files()
    connections = run.pick(10_000, 2_000)
    kinds = run.pick(list(KINDS), ["protocol"])
    measured = []
    for number, kind in enumerate(kinds):
        run.step(number, len(kinds), f"starting servers for {kind}")
        with run.alive(_servers(run, kind)) as here:
            measured.append(_measure(run, kind, here, connections, (number, len(kinds))))
    return {"connections": connections, "measured": measured}


def _servers(run: Run, kind: str) -> list[Server]:
    servers = [echoing.loop_server(run, each, f"echo_{kind}.py") for each in run.contenders]
    if kind == "streams" and hasattr(kloop, "start_server"):
        native = Contender(NATIVE, KLOOP)
        servers.append(echoing.loop_server(run, native, "echo_streams.py", "--native"))
    return servers


def _measure(
    run: Run, kind: str, servers: list[Server], connections: int, place: tuple[int, int]
) -> dict[str, Any]:
    # What a server needs for its first connections is not the price of the others.
    _one_active(run, servers, rounds=2)
    grown = {}
    with ExitStack() as stack:
        for server in servers:
            run.step(*place, f"opening {connections:,} connections to {server.name}, {kind}")
            before = memory.read(server.pids)
            try:
                stack.enter_context(Held(run, server, connections, *WORK))
            except BenchError as error:
                run.failures[f"{server.name}, {kind}"] = str(error)
                continue
            after = memory.read(server.pids)
            grown[server.name] = {"before": asdict(before), "after": asdict(after)}
        run.step(*place, f"one active connection, {kind}")
        here = [server for server in servers if server.name in grown]
        active = _one_active(run, here, rounds=run.pick(40, 10))
    return {"kind": kind, "memory": grown, "active": active}


def _one_active(run: Run, servers: list[Server], rounds: int) -> dict[str, LoadResult]:
    return run.visit(
        servers,
        connections=1,
        size=None,
        options=WORK,
        rounds=rounds,
        burst_ms=20,
        warmup_ms=run.pick(80, 40),
    )


def render(data: dict[str, Any]) -> Section:
    """Make a table and a picture of the memory, and a table of the costs."""
    section = Section(tables=[], plots=[_plot(data)])
    for each in data["measured"]:
        costs = _bytes_per_connection(each, data["connections"])
        section.tables.append(_table(each, costs, data["connections"]))
        peer = figures.best(costs, comparing.peers(costs))
        if peer and KLOOP in costs:
            what = f"memory of an idle connection, {KINDS[each['kind']]}"
            ratio = costs[KLOOP] / costs[peer]
            noise = costs[AGAIN] / costs[KLOOP] if AGAIN in costs else 1.0
            section.comparisons.append(
                Comparison(
                    what,
                    "bytes",
                    costs[KLOOP],
                    peer,
                    costs[peer],
                    Spread.of([ratio]),
                    Spread.of([noise]),
                )
            )
            section.goals.append(Goal(f"{what}: kloop / best peer", ratio, 1.0))
    return section


def _bytes_per_connection(measurement: dict[str, Any], connections: int) -> dict[str, float]:
    return {
        name: (grown["after"]["rss"] - grown["before"]["rss"]) / connections
        for name, grown in measurement["memory"].items()
    }


def _table(measurement: dict[str, Any], costs: dict[str, float], connections: int) -> Table:
    head = [
        "loop",
        ">bytes per connection",
        f">MiB in all, with {connections:,}",
        ">CPU us/request of one active among them",
        f">ratio to {KLOOP}",
    ]
    best = figures.best(costs, comparing.peers(costs))
    rows = []
    for name in [name for name in echoing.names([{"results": costs}]) if name in costs]:
        bytes_each = f"{costs[name]:,.0f}"
        row = [name, f"**{bytes_each}**" if name == best else bytes_each]
        row.append(f"{measurement['memory'][name]['after']['rss'] / 2**20:.1f}")
        active = measurement["active"]
        if name in active:
            row.append(f"{Spread.of(figures.cpu_per_request(active[name])).median:.1f}")
            row.append("" if name == KLOOP else show(comparing.ratio(active, name, KLOOP)))
        rows.append(row + [""] * (len(head) - len(row)))
    notes = [
        "Growth of the server's resident memory while the connections were opened, each of which "
        "has had one echo of 64 bytes. The kernel's part of a connection is not in it."
    ]
    return Table(head, rows, f"{KINDS[measurement['kind']]}", notes)


def _plot(data: dict[str, Any]) -> Plot:
    kinds = data["measured"]
    costs = [_bytes_per_connection(each, data["connections"]) for each in kinds]
    names = list(dict.fromkeys(name for each in costs for name in each if name != AGAIN))
    series = [
        Series(name, [each[name] / 1024 if name in each else None for each in costs])
        for name in names
    ]
    places = [KINDS[each["kind"]] for each in kinds]
    panel = Panel("", "", "KiB per connection", places, series)
    title = f"Memory of a server for each of {data['connections']:,} idle connections"
    return Plot("idle-memory", title, "bars", [panel])
