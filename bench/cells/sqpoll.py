"""A kernel thread that submits for the loop, with a CPU to spare for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comparing
import figures
import loading
from figures import Spread
from harness import Server
from loading import Case
from section import Section, Table

if TYPE_CHECKING:
    from run import Run

TITLE = "SQPOLL"
QUESTION = (
    "With a CPU to spare, how much sooner is an answer there when a kernel thread submits for the "
    "loop, and what does that cost?"
)
SECONDS = (18.0, 4.0)

OFF, ON, AGAIN = "off", "on", "off again"
CONNECTIONS = (1, 10)
SIZE = 64


def measure(run: Run) -> dict[str, Any]:
    """Let a client that sleeps echo with either server."""

    def servers() -> list[Server]:
        return [
            Server(name, "echo_sqpoll.py", ON if name == ON else OFF, str(run.server_cpu))
            for name in (OFF, ON, AGAIN)
        ]

    cases = [
        Case(
            f"{connections}",
            connections,
            ("--size", str(SIZE), "--sleep"),
            run.pick(40, 10),
            run.pick(50, 25),
        )
        for connections in run.pick(CONNECTIONS, (1,))
    ]
    return {"cpus": len(run.cpus), "measured": loading.measure(run, {"echo": (servers, cases)})}


def render(data: dict[str, Any]) -> Section:
    """Make a table."""
    head = [
        "connections",
        "SQPOLL",
        ">p50 us",
        ">p99 us",
        ">requests/s",
        ">CPU us/request, the kernel's thread included",
        ">CPU, to off",
    ]
    rows = []
    for each in data["measured"]:
        for name in (OFF, ON, AGAIN):
            if name not in each["results"]:
                continue
            result = each["results"][name]
            ratio = comparing.ratio(each["results"], name, OFF)
            rows.append(
                [
                    each["place"],
                    name,
                    f"{result['latency_us']['p50']:.0f}",
                    f"{result['latency_us']['p99']:.0f}",
                    f"{Spread.of(figures.rates(result)).median:,.0f}",
                    f"{Spread.of(figures.cpu_per_request(result)).median:.1f}",
                    "" if name == OFF else comparing.show(ratio),
                ]
            )
    notes = [
        f"Echo of {SIZE} bytes with a Protocol. The client sleeps while it waits, so that the "
        "kernel's thread has a CPU to spare"
        + ("." if data["cpus"] > 2 else ", which is the client's: there are two.")
    ]
    return Section(tables=[Table(head, rows, "", notes)])
