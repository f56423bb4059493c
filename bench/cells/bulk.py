"""One-way streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comparing
import echoing
import figures
import loading
from figures import Spread
from loading import Case
from section import Section, Table

if TYPE_CHECKING:
    from harness import Server
    from run import Run

TITLE = "Bulk, one way"
QUESTION = "What does it cost to send or to receive a lot, and how fast does it go?"
SECONDS = (55.0, 7.0)

MB = 1_000_000
TRANSFER_MB = 8
DIRECTIONS = {"download": "server sends", "upload": "server receives"}
CONNECTIONS = (1, 4)
PLACE = "connections"


def measure(run: Run) -> dict[str, Any]:
    """Move bytes in either direction, so many at a time."""

    def servers() -> list[Server]:
        return [echoing.loop_server(run, contender, "bulk.py") for contender in run.contenders]

    size = str(TRANSFER_MB * MB)
    kinds = {
        direction: (
            servers,
            [
                Case(
                    f"{connections}",
                    connections,
                    (f"--{direction}", size),
                    run.pick(20, 6),
                    run.pick(40, 25),
                )
                for connections in run.pick(CONNECTIONS, (1,))
            ],
        )
        for direction in DIRECTIONS
    }
    return {"measured": [_by_megabyte(each) for each in loading.measure(run, kinds)]}


def _by_megabyte(measurement: dict[str, Any]) -> dict[str, Any]:
    """Count megabytes instead of transfers, so that what is per request is per megabyte."""
    results = {}
    for name, result in measurement["results"].items():
        rounds = [
            {**entry, "requests": entry["requests"] * TRANSFER_MB} for entry in result["rounds"]
        ]
        results[name] = {**result, "rounds": rounds}
    return {**measurement, "results": results}


def render(data: dict[str, Any]) -> Section:
    """Make a table of costs and one of rates for each direction."""
    tables = []
    comparisons = []
    for direction, title in DIRECTIONS.items():
        here = [each for each in data["measured"] if each["kind"] == direction]
        tables.append(echoing.cost_table(f"The {title}: processor time", here, "MB", PLACE))
        tables.append(_throughput(f"The {title}: MB/s", here))
        comparisons += [
            comparing.compare(f"bulk, {title}, {each['connections']} connections", each["results"])
            for each in here
        ]
    return Section(tables=tables, comparisons=[each for each in comparisons if each])


def _throughput(title: str, measured: list[dict[str, Any]]) -> Table:
    names = echoing.names(measured)
    rows, dropped = [], []
    for each in measured:
        results = each["results"]
        if echoing.waited(results):
            dropped.append(f"{each['connections']}")
            continue
        rates = {name: Spread.of(figures.rates(result)).median for name, result in results.items()}
        rows.append(
            [each["place"], *(f"{rates[name]:,.0f}" if name in rates else "" for name in names)]
        )
    notes = []
    if dropped:
        places = ", ".join(dropped)
        notes.append(f"Dropped, since a server waited for the client: {places} connections.")
    return Table([PLACE, *(f">{name}" for name in names)], rows, title, notes)
