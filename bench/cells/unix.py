"""Echo through Unix stream sockets."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import echoing
import loading
from loading import Case
from section import Section

if TYPE_CHECKING:
    from harness import Server
    from run import Run

TITLE = "Unix stream echo"
QUESTION = "The same through Unix sockets, where the kernel does less."
SECONDS = (45.0, 9.0)

KINDS = {"protocol": "Protocol", "buffered": "BufferedProtocol", "streams": "streams"}


def measure(run: Run) -> dict[str, Any]:
    """Measure each kind of server."""
    full = [
        Case.echo(10, 1024, 15, 20),
        Case.echo(100, 1024, 15, 20),
        Case.echo(10, 100 * 1024, 10, 15),
    ]
    cases = run.pick(full, [Case.echo(10, 1024, 8, 15)])
    chosen = run.pick(list(KINDS), ["protocol"])
    with tempfile.TemporaryDirectory() as folder:
        kinds = {kind: (partial(_servers, run, kind, Path(folder, kind)), cases) for kind in chosen}
        return {"measured": loading.measure(run, kinds)}


def _servers(run: Run, kind: str, folder: Path) -> list[Server]:
    folder.mkdir()
    return [
        echoing.floor_server(run, f"unix:{folder}/floor"),
        *(
            echoing.loop_server(
                run,
                contender,
                f"echo_{kind}.py",
                *("--unix", f"{folder}/{contender.name.replace(' ', '-')}"),
            )
            for contender in run.contenders
        ),
    ]


def render(data: dict[str, Any]) -> Section:
    """Make a table by kind."""
    return echoing.simple_section("Unix echo", data["measured"], KINDS)
