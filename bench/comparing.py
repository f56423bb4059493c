"""Sets the servers of one measurement against each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import figures
from contenders import AGAIN, FLOOR, KLOOP
from figures import Spread
from section import Comparison

if TYPE_CHECKING:
    from collections.abc import Mapping

# Results of the load client by the name of the server, as JSON has them.
Results = dict[str, Any]


def costs(results: Results) -> dict[str, float]:
    """The median of each server's processor time per request, in us."""
    return {
        name: Spread.of(figures.cpu_per_request(result)).median for name, result in results.items()
    }


def ratio(results: Results, name: str, base: str) -> Spread | None:
    """How many times the processor time per request of `base` the server `name` takes."""
    if name not in results or base not in results:
        return None
    return figures.ratio(
        figures.cpu_per_request(results[name]), figures.cpu_per_request(results[base])
    )


def peers(results: Mapping[str, Any]) -> list[str]:
    """The names of what kloop is compared with: all but itself and the floor."""
    return [name for name in results if name != FLOOR and not name.startswith(KLOOP)]


def compare(what: str, results: Results, kloop: str = KLOOP) -> Comparison | None:
    """Compare kloop with its best peer, by processor time per request."""
    medians = costs(results)
    peer = figures.best(medians, peers(results))
    if peer is None or kloop not in results:
        return None
    found = ratio(results, kloop, peer)
    if found is None:
        return None
    return Comparison(
        what=what,
        unit="us",
        kloop=medians[kloop],
        peer=peer,
        peer_value=medians[peer],
        ratio=found,
        noise=ratio(results, AGAIN, KLOOP),
    )


def show(spread: Spread | None, spec: str = ".2f") -> str:
    """Format a spread for a table; nothing where there is none."""
    return "" if spread is None else format(spread, spec)


def cost_row(results: Results, names: list[str]) -> list[str]:
    """The cells of a row: processor time of each server per request, the best peer's bold."""
    medians = costs(results)
    best = figures.best(medians, peers(results))
    return [
        ""
        if name not in medians
        else f"**{medians[name]:.2f}**"
        if name == best
        else f"{medians[name]:.2f}"
        for name in names
    ]
