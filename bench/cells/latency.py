"""Latency of a TCP echo at a fixed rate of requests, up to what the native server can do."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import comparing
import echoing
import figures
from contenders import AGAIN, FLOOR
from figures import Spread
from loading import Case
from section import Panel, Plot, Section, Series, Table

if TYPE_CHECKING:
    from harness import Server
    from run import Run

TITLE = "Latency against load"
QUESTION = (
    "How long does a request take when requests come at a fixed rate, whatever becomes of those "
    "before them?"
)
SECONDS = (45.0, 7.0)

CONNECTIONS = 100
SIZE = 1024
# Of the requests per second that the native server can answer.
SHARES = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9)
QUICK_SHARES = (0.4, 0.8)

# Below this share of the requests that were due, a server was overloaded.
KEPT_UP = 0.97


def measure(run: Run) -> dict[str, Any]:
    """Find what the native server can do, then visit all at shares of that."""
    shares = run.pick(SHARES, QUICK_SHARES)
    run.step(0, len(shares), "starting servers")
    with run.alive(_servers(run)) as here:
        visit = partial(run.visit, connections=CONNECTIONS, size=SIZE)
        first = visit(here[:1], rounds=run.pick(20, 8), burst_ms=20)
        if FLOOR not in first:
            raise RuntimeError("the native server does not run")
        most = Spread.of(figures.rates(first[FLOOR])).upper
        measured = []
        for number, share in enumerate(shares):
            # In thousands, for the sake of readers.
            rate = round(share * most / 1000) * 1000
            run.step(number, len(shares), f"{rate:,} requests/s")
            results = visit(
                here,
                rounds=run.pick(6, 3),
                burst_ms=run.pick(100, 60),
                warmup_ms=run.pick(80, 40),
                options=("--rate", str(rate)),
            )
            measured.append({"rate": rate, "place": f"{rate:,}", "results": results})
    return {"most": most, "measured": measured}


def _servers(run: Run) -> list[Server]:
    return [
        echoing.floor_server(run, "127.0.0.1:0"),
        *(echoing.loop_server(run, each, "echo_protocol.py") for each in run.contenders),
    ]


def render(data: dict[str, Any]) -> Section:
    """Make a table and a picture of the latencies, and a table of processor time."""
    measured = data["measured"]
    servers = echoing.names(measured)
    rows = []
    for each in measured:
        for quantile in ("p50", "p99"):
            cells = (_latency(each, name, quantile) for name in servers)
            shown = ("" if cell is None else f"{cell:,.0f}" for cell in cells)
            rows.append([each["place"], quantile, *shown])
    notes = [
        f"Latency in us, from when a request was due, over {CONNECTIONS} connections with "
        f"{SIZE // 1024} KiB, Protocol. Nothing is shown for a server that answered less than "
        f"{KEPT_UP:.0%} of what was due while the bursts lasted. The native server can answer "
        f"{data['most']:,.0f} requests per second."
    ]
    head = [">requests/s", "", *(f">{name}" for name in servers)]
    costs = echoing.cost_table("Processor time at that rate", measured, place="requests/s")
    what = f"TCP echo, Protocol, {Case.echo(CONNECTIONS, SIZE, 0, 0).place}"
    found = (
        comparing.compare(f"{what}, at {each['place']} requests/s", each["results"])
        for each in measured
    )
    return Section(
        tables=[Table(head, rows, notes=notes), costs],
        plots=[_plot(measured, [name for name in servers if name != AGAIN])],
        comparisons=[each for each in found if each is not None],
    )


def _latency(measurement: dict[str, Any], name: str, quantile: str) -> float | None:
    result = measurement["results"].get(name)
    if result is None:
        return None
    if Spread.of(figures.rates(result)).median < KEPT_UP * measurement["rate"]:
        return None
    return float(result["latency_us"][quantile])


def _plot(measured: list[dict[str, Any]], servers: list[str]) -> Plot:
    panels = [
        Panel(
            quantile,
            "thousand requests per second",
            "latency, us",
            [f"{each['rate'] / 1000:.0f}" for each in measured],
            [
                Series(name, [_latency(each, name, quantile) for each in measured])
                for name in servers
            ],
        )
        for quantile in ("p50", "p99")
    ]
    title = f"TCP echo of 1 KiB on {CONNECTIONS} connections: latency against load"
    return Plot("latency", title, "lines", panels, log_y=True)
