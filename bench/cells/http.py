"""HTTP servers on each loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comparing
import echoing
import figures
import loading
from contenders import KLOOP
from figures import Spread
from loading import Case
from many import Family
from section import Goal, Section, Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness import Server
    from run import Run

TITLE = "HTTP"
QUESTION = (
    "What does a keep-alive request for a greeting cost uvicorn (with httptools) and aiohttp on "
    "each loop? And what does it cost granian, a server with a runtime of its own?"
)
SECONDS = (45.0, 12.0)

KINDS = {"uvicorn": "uvicorn with httptools", "aiohttp": "aiohttp"}
GRANIAN = "granian"
CONNECTIONS = (10, 100)
OPTIONS = ("--get", "/")
PLACE = "connections"


def measure(run: Run) -> dict[str, Any]:
    """Measure each server on each loop, and granian in the same rounds as uvicorn."""
    cases = [
        Case(f"{connections}", connections, OPTIONS, run.pick(25, 8), 25)
        for connections in run.pick(CONNECTIONS, (100,))
    ]
    kinds = {kind: (_servers(run, kind), cases) for kind in KINDS}
    return {"measured": loading.measure(run, kinds)}


def _servers(run: Run, kind: str) -> Callable[[], list[Server]]:
    def servers() -> list[Server]:
        here: list[Server] = [
            echoing.loop_server(run, contender, f"http_{kind}.py") for contender in run.contenders
        ]
        if kind == "uvicorn":
            command = ("http_granian.py", "1", "uvloop", str(run.server_cpu))
            here.append(Family(GRANIAN, *command, workers=1))
        return here

    return servers


def render(data: dict[str, Any]) -> Section:
    """Make a table of costs and one of rates for each server."""
    tables = []
    comparisons = []
    goals = []
    for kind, title in KINDS.items():
        measured = [each for each in data["measured"] if each["kind"] == kind]
        loops = [_without_granian(each) for each in measured]
        tables.append(echoing.cost_table(f"{title}: processor time", loops, place=PLACE))
        tables.append(echoing.rate_table(f"{title}: rate and latency", loops, place=PLACE))
        for each in loops:
            what = f"{kind}, {each['connections']} connections"
            if comparison := comparing.compare(what, each["results"]):
                comparisons.append(comparison)
                ratio = comparison.ratio.median
                goals.append(Goal(f"{what}: CPU per request / best peer", ratio, 1.0))
        rows = [_granian_row(each["place"], each["results"]) for each in measured]
        if any(rows):
            tables.append(_granian_table([row for row in rows if row]))
    return Section(tables=tables, comparisons=comparisons, goals=goals)


def _without_granian(measurement: dict[str, Any]) -> dict[str, Any]:
    loops = {name: each for name, each in measurement["results"].items() if name != GRANIAN}
    return {**measurement, "results": loops}


def _granian_table(rows: list[list[str]]) -> Table:
    head = [
        PLACE,
        ">granian, CPU us/request",
        ">granian / uvicorn on kloop",
        ">granian, requests/s",
    ]
    notes = ["granian with one worker, ASGI, its uvloop; all of its processes count."]
    return Table(head, rows, "granian in the same rounds", notes)


def _granian_row(place: str, results: dict[str, Any]) -> list[str]:
    if GRANIAN not in results or KLOOP not in results:
        return []
    granian = results[GRANIAN]
    return [
        place,
        f"{Spread.of(figures.cpu_per_request(granian)).median:.1f}",
        comparing.show(comparing.ratio(results, GRANIAN, KLOOP)),
        f"{Spread.of(figures.rates(granian)).median:,.0f}",
    ]
