"""Echo over UDP."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import echoing
import loading
from loading import Case
from section import Section

if TYPE_CHECKING:
    from harness import Server
    from run import Run

TITLE = "UDP echo"
QUESTION = "What does a datagram cost, there and back?"
SECONDS = (30.0, 5.0)

KINDS = {"datagrams": "DatagramProtocol"}


def measure(run: Run) -> dict[str, Any]:
    """Measure all loops."""
    full = [Case.echo(clients, size, 15, 20) for size in (64, 1024) for clients in (1, 10, 100)]
    cases = run.pick(full, [Case.echo(10, 1024, 8, 15)])
    return {"measured": loading.measure(run, {"datagrams": (partial(_servers, run), cases)})}


def _servers(run: Run) -> list[Server]:
    return [
        echoing.floor_server(run, "udp:127.0.0.1:0"),
        *(echoing.loop_server(run, each, "echo_datagrams.py") for each in run.contenders),
    ]


def render(data: dict[str, Any]) -> Section:
    """Make one table, and say what got lost."""
    section = echoing.simple_section("UDP echo", data["measured"], KINDS, unit="datagram")
    lost = {
        f"{name} {result['lost']:,} of {result['requests'] + result['lost']:,} with {each['place']}"
        for each in data["measured"]
        for name, result in each["results"].items()
        if result["lost"]
    }
    section.notes.append(
        f"Lost datagrams: {'; '.join(sorted(lost))}." if lost else "No datagram was lost."
    )
    return section
