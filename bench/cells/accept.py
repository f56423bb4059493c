"""Connections that live for one request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comparing
import echoing
import loading
from loading import Case
from section import Section

if TYPE_CHECKING:
    from harness import Server
    from run import Run

TITLE = "Connections for one request"
QUESTION = (
    "What does it cost to accept a connection, read a request, answer it and close? How many of "
    "them can a server take in a second?"
)
SECONDS = (30.0, 7.0)

OPTIONS = ("--size", "64", "--single-request")
CONNECTIONS = (1, 10, 100)
PLACE = "connections at once"


def measure(run: Run) -> dict[str, Any]:
    """Have the client open a connection for each request, which the server closes."""

    def servers() -> list[Server]:
        return [echoing.loop_server(run, contender, "accept.py") for contender in run.contenders]

    cases = [
        Case(f"{connections}", connections, OPTIONS, run.pick(30, 10))
        for connections in run.pick(CONNECTIONS, (10,))
    ]
    return {"measured": loading.measure(run, {"protocol": (servers, cases)})}


def render(data: dict[str, Any]) -> Section:
    """Make a table of costs and one of rates."""
    measured = data["measured"]
    comparisons = [
        comparing.compare(f"connection for one request, {each['place']} at once", each["results"])
        for each in measured
    ]
    return Section(
        tables=[
            echoing.cost_table("Processor time of a connection", measured, "connection", PLACE),
            echoing.rate_table(
                "Connections per second, and how long one takes", measured, "connections", PLACE
            ),
        ],
        comparisons=[each for each in comparisons if each],
    )
