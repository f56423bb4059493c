"""What a loop does without a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import figures
import harness
from contenders import AGAIN, KLOOP
from figures import Spread
from harness import BenchError
from section import Comparison, Goal, Panel, Plot, Section, Series, Table

if TYPE_CHECKING:
    from run import Run

TITLE = "Loop operations"
QUESTION = "What do callbacks, timers, tasks, futures and threads cost?"
SECONDS = (130.0, 20.0)

# The geometric mean over the operations, of the best single peer over kloop.
GOAL_MEAN = 1.15


def measure(run: Run) -> dict[str, Any]:
    """Time the operations on each loop, each time in a process of its own."""
    processes, repetitions = run.pick((9, 5), (2, 2))
    times: dict[str, list[dict[str, float]]] = {each.name: [] for each in run.contenders}
    total = processes * len(run.contenders)
    for number in range(processes):
        for place, contender in enumerate(run.contenders[:: 1 if number % 2 == 0 else -1]):
            run.step(number * len(run.contenders) + place, total, contender.name)
            try:
                found = harness.run_script(
                    "loop_operations.py",
                    *("--loop", contender.loop, "--cpu", str(run.server_cpu)),
                    *("--repetitions", str(repetitions)),
                    environment=contender.environment,
                )
            except BenchError as error:
                run.failures[contender.name] = str(error)
                continue
            times[contender.name].append(found)
    whole = {name: found for name, found in times.items() if len(found) == processes}
    if KLOOP not in whole:
        raise BenchError(run.failures[KLOOP])
    return {"times": whole, "processes": processes, "repetitions": repetitions}


def render(data: dict[str, Any]) -> Section:
    """Make one table and one picture."""
    times: dict[str, list[dict[str, float]]] = data["times"]
    operations = list(times[KLOOP][0])
    peers = [name for name in times if name not in (KLOOP, AGAIN)]
    least = {
        name: {each: min(found[each] for found in times[name]) for each in operations}
        for name in times
    }
    comparisons, rows = [], []
    for operation in operations:
        costs = {name: least[name][operation] for name in times}
        peer = figures.best(costs, peers)
        row = [operation]
        row += [_cost(costs[name], name == peer) for name in times if name != AGAIN]
        if peer is not None:
            comparison = Comparison(
                what=operation,
                unit="ns",
                kloop=costs[KLOOP],
                peer=peer,
                peer_value=costs[peer],
                ratio=_ratio(times, operation, KLOOP, peer),
                noise=_ratio(times, operation, AGAIN, KLOOP),
            )
            comparisons.append(comparison)
            row += [f"{comparison.ratio:.2f}", f"{comparison.noise:.2f}"]
        rows.append(row)
    means = {name: figures.geometric_mean([*least[name].values()]) for name in times}
    peer = figures.best(means, peers)
    mean = ["**geometric mean**"]
    mean += [_cost(means[name], name == peer) for name in times if name != AGAIN]
    goals = [Goal(f"{each.what}: cost / best peer", each.ratio.median, 1.0) for each in comparisons]
    if peer is not None:
        mean += [f"{means[KLOOP] / means[peer]:.2f}", f"{means[AGAIN] / means[KLOOP]:.2f}"]
        what = f"loop operations, geometric mean: {peer} / kloop"
        goals.append(Goal(what, means[peer] / means[KLOOP], GOAL_MEAN, at_least=True))
    rows.append(mean)
    note = (
        "Nanoseconds of processor time of the whole process per operation, the least of "
        f"{data['processes']} processes with {data['repetitions']} repetitions each; the "
        "processes of all loops take turns. What call_soon_threadsafe costs its caller is the "
        "calling thread's processor time, and the wake-up is wall time, with both threads on one "
        "CPU. Ratios are taken process by process."
    )
    head = ["operation", *(f">{name}" for name in times if name != AGAIN)]
    if peers:
        head += [">kloop / best peer", f">{AGAIN} / kloop"]
    return Section(
        tables=[Table(head, rows, notes=[note])],
        plots=[_plot(least, operations, peers)],
        comparisons=comparisons,
        goals=goals,
    )


def _cost(nanoseconds: float, is_best: bool) -> str:
    text = f"{nanoseconds:,.0f}"
    return f"**{text}**" if is_best else text


def _ratio(
    times: dict[str, list[dict[str, float]]], operation: str, name: str, base: str
) -> Spread:
    pairs = zip(times[name], times[base], strict=True)
    return Spread.of([one[operation] / other[operation] for one, other in pairs])


def _plot(least: dict[str, dict[str, float]], operations: list[str], peers: list[str]) -> Plot:
    names = [KLOOP, *peers]
    best = {each: min(least[name][each] for name in names) for each in operations}
    series = []
    for name in names:
        against: list[float | None] = [least[name][each] / best[each] for each in operations]
        mean = figures.geometric_mean([value for value in against if value])
        series.append(Series(name, [*against, mean]))
    panel = Panel("", "", "cost / the best loop's", [*operations, "geometric mean"], series)
    title = "Loop operations: cost against the best loop (1 is best)"
    return Plot("loop-operations", title, "bars", [panel], log_y=True, reference=1.0)
