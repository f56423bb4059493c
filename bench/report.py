"""Renders the report as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cells
import harness
from figures import SATURATED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from section import Comparison, Goal, Plot, Section, Table

NOTES = harness.BENCH / "notes.md"

# The share of disturbed bursts that is worth a word.
DISTURBED = 0.02

METHOD = """\
Each figure is an interleaved comparison within one run. All servers of a measurement are alive at
once, and one native load client visits them in turn in short bursts, in reverse order every other
round. It reads a server's processor time from the kernel before and after each burst, once the
server has come to rest. Two servers are compared round by round; a ratio is the median over the
rounds, with its quartiles in brackets. The clock of a machine drifts between measurements, so
compare ratios, not microseconds of different tables.

Servers stay on CPU {server_cpu}, and the client spins on CPU {client_cpu}, so that no server pays
for waking it. "kloop again" is a second process of the same, and how far it is from 1.00 is the
noise. "floor" is a native echo server on epoll, which does nothing that an echo does not need. A
peer in bold is the best one. All loops run with raised malloc thresholds, the best setting for
most: without them, some of them and asyncio's streams take memory from the kernel and return it for
each large read. A server that does not work in a measurement, or spins while nobody asks it for
anything, is left out of it and named below it.

Where a server under load of several connections was busy for less than {saturated:.0%} of the
burst, it waited for the client, or for a CPU that something else had taken. Its requests per second
and latencies are then not its own, and the measurement is dropped for all; processor time per
request stands, for it is the kernel's figure for that process alone. With one connection, server
and client wait for each other by design, so that there is a latency to report, and no throughput.
"""


def sections(
    measured: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Section], dict[str, str]]:
    """Make the section of each cell, and say which cells failed, and why."""
    made: dict[str, Section] = {}
    failed: dict[str, str] = {}
    for name, content in measured.items():
        if "error" in content:
            failed[name] = content["error"]
            continue
        try:
            made[name] = cells.load(name).render(content["data"])
        except Exception as error:
            failed[name] = f"its data cannot be rendered: {type(error).__name__}: {error}"
    return made, failed


def render(
    facts: Mapping[str, Any],
    measured: Mapping[str, Mapping[str, Any]],
    sections: Mapping[str, Section],
    failed: Mapping[str, str],
    pictures: str,
) -> str:
    """Render the whole report; `pictures` is the folder of the plots, or empty, with its slash."""
    parts = ["# Benchmarks", _origin(facts), "## Method", method(facts)]
    goals = [goal for section in sections.values() for goal in section.goals]
    if goals:
        parts += ["## Goals", goals_table(goals)]
    comparisons = [each for section in sections.values() for each in section.comparisons]
    if comparisons:
        parts += ["## Where kloop is not the best", losses(comparisons)]
    for name, content in measured.items():
        cell = cells.load(name)
        parts += [f"## {cell.TITLE}", cell.QUESTION]
        if name in failed:
            parts.append(f"**Failed:** {failed[name]}")
        if name in sections:
            parts += _section(sections[name], pictures)
        bursts, disturbed = content.get("bursts", 0), content.get("disturbed", 0)
        if disturbed > DISTURBED * bursts:
            parts.append(
                f"The machine was not quiet: in {disturbed:,} of {bursts:,} bursts something else "
                "took the client's CPU. Requests per second and latencies mean little here."
            )
        if content.get("failures"):
            lines = [f"- {who}: {why}" for who, why in content["failures"].items()]
            parts.append("Left out of this or a part of it:\n\n" + "\n".join(lines))
    if NOTES.exists():
        parts.append(NOTES.read_text(encoding="utf-8").strip())
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def method(facts: Mapping[str, Any]) -> str:
    """Say how the figures were taken."""
    return METHOD.format(**facts, saturated=SATURATED)


def table(content: Table) -> str:
    """Render a table with its title above and its notes below."""
    marks = ["--:" if head.startswith(">") else "---" for head in content.head]
    lines = [_row([head.removeprefix(">") for head in content.head]), _row(marks)]
    lines += [_row(row) for row in content.rows]
    parts = [f"### {content.title}"] if content.title else []
    parts += ["\n".join(lines)] if content.rows else []
    return "\n\n".join([*parts, *content.notes])


def goals_table(goals: Sequence[Goal]) -> str:
    """Render what was wanted and what was reached."""
    rows = [_row(["what", "goal", "measured", ""]), _row(["---", "--:", "--:", "---"])]
    for goal in goals:
        sign = "at least" if goal.at_least else "at most"
        gap = goal.limit - goal.figure if goal.at_least else goal.figure - goal.limit
        verdict = "met" if goal.met else f"**missed by {gap:.2f}**"
        rows.append(_row([goal.what, f"{sign} {goal.limit:.2f}", f"{goal.figure:.2f}", verdict]))
    return "\n".join(rows)


def losses(comparisons: Sequence[Comparison]) -> str:
    """List the comparisons in which kloop's ratio to the best peer is above 1.00."""
    lost = [each for each in comparisons if round(each.ratio.median, 2) > 1]
    total = len(comparisons)
    if not lost:
        return f"Nowhere in the {total} comparisons below."
    rows = [
        _row(
            [
                each.what,
                f"{each.kloop:,.2f} {each.unit}",
                f"{each.peer}, {each.peer_value:,.2f} {each.unit}",
                format(each.ratio, ".2f"),
                "" if each.noise is None else format(each.noise, ".2f"),
            ]
        )
        for each in sorted(lost, key=lambda each: -each.ratio.median)
    ]
    head = ["what", "kloop", "best peer", "kloop / best peer", "kloop again / kloop"]
    text = f"In {len(lost)} of the {total} comparisons with the best peer:"
    return "\n".join([text, "", _row(head), _row(["---", "--:", "--:", "--:", "--:"]), *rows])


def _origin(facts: Mapping[str, Any]) -> str:
    minutes, seconds = divmod(round(facts.get("seconds", 0)), 60)
    quick = (
        " A quick run: few cases and few rounds, so take it for a hint." if facts["quick"] else ""
    )
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    text = (
        f"Taken on {facts['date']} in {minutes} min {seconds} s with CPython {facts['python']} "
        f"({facts['build']}), Linux {facts['kernel']}, on {facts['cpus']} CPUs of an "
        f"{facts['processor']} with {facts['memory_gib']} GiB; load average at the start "
        f"{facts['load_average']:.2f}.{quick} `make bench` makes this report.\n\n"
        f"Versions: {versions}."
    )
    if facts["left_out"]:
        reasons = "; ".join(f"{name} ({why})" for name, why in facts["left_out"].items())
        text += f"\n\nNot compared: {reasons}."
    return text


def _section(section: Section, pictures: str) -> list[str]:
    parts = [_picture(plot, pictures) for plot in section.plots if not plot.is_empty]
    parts += [table(each) for each in section.tables]
    return parts + section.notes


def _picture(plot: Plot, pictures: str) -> str:
    return f"![{plot.alt or plot.title}]({pictures}{plot.name}.svg)"


def _row(row: Sequence[str]) -> str:
    return "| " + " | ".join(row) + " |"
