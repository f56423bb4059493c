"""What is computed from measurements: spreads, ratios, and which figures may stand."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Below this share of a CPU a server under load of several connections had time to wait,
# so that its requests per second are the client's, not its own.
SATURATED = 0.9


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of a figure over the rounds."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Summarise `values`, of which there is at least one."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, lower, upper)

    def __format__(self, spec: str) -> str:
        """Format all three, each by `spec`, as `median (lower-upper)`."""
        lower, upper = format(self.lower, spec), format(self.upper, spec)
        return f"{format(self.median, spec)} ({lower}-{upper})"


def cpu_per_request(result: Mapping[str, Any]) -> list[float]:
    """Compute a server's processor time per request in us, round by round."""
    return [
        (entry["server_cpu_us"] or 0.0) / max(entry["requests"], 1) for entry in result["rounds"]
    ]


def cpus_used(result: Mapping[str, Any]) -> list[float]:
    """Compute how many CPUs a server kept busy, round by round."""
    return [(entry["server_cpu_us"] or 0.0) / 1e6 / entry["seconds"] for entry in result["rounds"]]


def rates(result: Mapping[str, Any]) -> list[float]:
    """Compute the requests per second, round by round."""
    return [entry["requests"] / entry["seconds"] for entry in result["rounds"]]


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Divide round by round, leaving out rounds in which nothing was answered."""
    pairs = zip(numerators, denominators, strict=True)
    return [above / below for above, below in pairs if above > 0 and below > 0]


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread | None:
    """Summarise the ratio round by round, or None if no round has one."""
    found = ratios(numerators, denominators)
    return Spread.of(found) if found else None


def geometric_mean(values: Sequence[float]) -> float:
    """Compute the mean that suits ratios; there is at least one, and none is 0."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def client_was_the_limit(result: Mapping[str, Any], cpus: float = 1.0) -> bool:
    """Whether a server that may use `cpus` CPUs waited for the client.

    Then its requests per second and latencies say nothing about it. Its processor time per
    request still does. With one connection server and client wait for each other by design:
    what there is to see is latency, not throughput.
    """
    return bool(Spread.of(cpus_used(result)).median < SATURATED * cpus)


def disturbed(result: Mapping[str, Any]) -> int:
    """Count the bursts in which a client that spins did not have its CPU for itself."""
    return sum(
        entry["client_cpu_us"] / 1e6 < SATURATED * entry["seconds"] for entry in result["rounds"]
    )


def best(costs: Mapping[str, float], names: Sequence[str]) -> str | None:
    """Find which of `names` has the smallest of `costs`, or None if none has any."""
    here = [name for name in names if name in costs]
    return min(here, key=lambda name: costs[name]) if here else None
