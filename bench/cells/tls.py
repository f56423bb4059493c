"""Echo over TLS, through the path that asyncio's own loop takes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import echoing
import harness
import loading
from loading import Case
from section import Section

if TYPE_CHECKING:
    from harness import Server
    from run import Run

TITLE = "TLS echo"
QUESTION = "What does a request cost over TLS 1.3, with asyncio's ssl= argument?"
SECONDS = (40.0, 9.0)

KINDS = {"protocol": "Protocol", "streams": "streams"}


def measure(run: Run) -> dict[str, Any]:
    """Measure each kind of server."""
    full = [
        Case.echo(10, 1024, 15, 20),
        Case.echo(100, 1024, 15, 20),
        Case.echo(10, 100 * 1024, 10, 20),
    ]
    cases = run.pick(full, [Case.echo(10, 1024, 8, 15)])
    chosen = run.pick(list(KINDS), ["protocol"])
    kinds = {kind: (partial(_servers, run, kind), cases) for kind in chosen}
    return {"measured": loading.measure(run, kinds)}


def _servers(run: Run, kind: str) -> list[Server]:
    certificate = str(harness.SERVERS / "localhost.pem")
    return [
        echoing.loop_server(run, each, f"echo_{kind}.py", "--tls", certificate)
        for each in run.contenders
    ]


def render(data: dict[str, Any]) -> Section:
    """Make a table by kind."""
    return echoing.simple_section("TLS echo", data["measured"], KINDS)
