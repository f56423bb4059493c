"""What the cells that echo share: the servers, and tables of what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comparing
import figures
from comparing import Results, show
from contenders import AGAIN, FLOOR, KLOOP
from harness import Server
from section import Section, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from contenders import Contender
    from run import Run
    from section import Comparison

NATIVE = "kloop.start_server"


def loop_server(run: Run, contender: Contender, script: str, *more: str) -> Server:
    """Prepare the server `script` on a contender's loop."""
    arguments = ("--loop", contender.loop, "--cpu", str(run.server_cpu), *more)
    return Server(contender.name, script, *arguments, environment=contender.environment)


def floor_server(run: Run, address: str) -> Server:
    """Prepare the native echo server on `address`, in the words of the load client."""
    return Server(FLOOR, run.client.floor, "--cpu", str(run.server_cpu), "--listen", address)


def names(measured: Sequence[dict[str, Any]]) -> list[str]:
    """The names of all servers of `measured`: the floor, kloop, the peers, kloop again."""
    seen = list(dict.fromkeys(name for each in measured for name in each["results"]))
    rank = {FLOOR: 0, KLOOP: 1, NATIVE: 2, AGAIN: 4}
    return sorted(seen, key=lambda name: rank.get(name, 3))


def cost_table(
    title: str,
    measured: Sequence[dict[str, Any]],
    unit: str = "request",
    place: str = "connections x size",
) -> Table:
    """Tabulate the processor time per request of each server, and kloop's ratios."""
    servers = names(measured)
    shown = [name for name in servers if name != AGAIN]
    has_floor = FLOOR in servers
    head = [place, *(f">{name}" for name in shown)]
    ours = [name for name in (KLOOP, NATIVE) if name in servers]
    if has_floor:
        head += [f">{name} / floor" for name in ours]
    head += [">kloop / best peer", f">{AGAIN} / kloop"]
    rows = []
    for each in measured:
        results: Results = each["results"]
        row = [each["place"], *comparing.cost_row(results, shown)]
        if has_floor:
            row += [show(comparing.ratio(results, name, FLOOR)) for name in ours]
        comparison = comparing.compare("", results)
        row.append(show(comparison.ratio if comparison else None))
        row.append(show(comparing.ratio(results, AGAIN, KLOOP)))
        rows.append(row)
    note = f"Processor time of the server per {unit} in us; ratios with their quartiles."
    return Table(head, rows, title, [note])


def rate_table(
    title: str,
    measured: Sequence[dict[str, Any]],
    unit: str = "requests",
    place: str = "connections x size",
) -> Table:
    """Tabulate requests per second and latency where they are the server's own."""
    head = [place, "loop", f">{unit}/s", ">p50 us", ">p99 us", ">busy"]
    rows, dropped = [], []
    for each in measured:
        results = each["results"]
        if each["connections"] > 1 and waited(results):
            dropped.append(each["place"])
            continue
        for name in names([each]):
            result = results[name]
            latency = result["latency_us"]
            rate = figures.Spread.of(figures.rates(result)).median
            busy = figures.Spread.of(figures.cpus_used(result)).median
            rows.append(
                [
                    each["place"],
                    name,
                    f"{rate:,.0f}" if each["connections"] > 1 else "",
                    f"{latency['p50']:.0f}",
                    f"{latency['p99']:.0f}",
                    f"{busy:.0%}",
                ]
            )
    notes = ["busy: the server's processor time over the length of the bursts."] if rows else []
    if dropped:
        notes.append("Dropped, since a server waited for the client: " + ", ".join(dropped) + ".")
    return Table(head, rows, title, notes)


def waited(results: Results) -> bool:
    """Whether a server waited for the client, so that nobody's requests per second count."""
    return any(figures.client_was_the_limit(result) for result in results.values())


def simple_section(
    what: str, measured: Sequence[dict[str, Any]], kinds: dict[str, str], unit: str = "request"
) -> Section:
    """Make a table by kind, and compare kloop with the best peer in each row."""
    tables = []
    for kind, title in kinds.items():
        here = [each for each in measured if each["kind"] == kind]
        if here:
            tables.append(cost_table(title, here, unit))
    return Section(tables, comparisons=comparisons(what, measured, kinds))


def comparisons(
    what: str, measured: Sequence[dict[str, Any]], kinds: dict[str, str]
) -> list[Comparison]:
    """Compare kloop with the best peer in each measurement."""
    found = (
        comparing.compare(f"{what}, {kinds[each['kind']]}, {each['place']}", each["results"])
        for each in measured
    )
    return [each for each in found if each is not None]
