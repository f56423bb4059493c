"""What is measured: a module each.

A cell has a TITLE, the QUESTION that it answers, SECONDS (how long a full and a quick run
take, about), `measure(run)`, which returns JSON data, and `render(data)`, which makes a
section of the report from them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from run import Run
    from section import Section

# In the order of the report.
NAMES = (
    "loop_operations",
    "echo",
    "latency",
    "unix",
    "udp",
    "tls",
    "pipes",
    "accept",
    "bulk",
    "idle",
    "http",
    "cores",
    "sqpoll",
)


class Cell(Protocol):
    """A module of this package."""

    TITLE: str
    QUESTION: str
    SECONDS: tuple[float, float]

    def measure(self, run: Run) -> dict[str, Any]:
        """Measure; the result goes to a JSON file."""
        ...

    def render(self, data: dict[str, Any]) -> Section:
        """Make the section of the report from what was measured, now or earlier."""
        ...


def load(name: str) -> Cell:
    """Import a cell."""
    return cast("Cell", importlib.import_module(f"cells.{name}"))
