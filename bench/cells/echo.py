"""TCP echo, against the floor and every peer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import comparing
import echoing
import loading
from contenders import AGAIN, FLOOR, KLOOP, Contender
from echoing import NATIVE
from loading import Case
from section import Goal, Panel, Plot, Section, Series

if TYPE_CHECKING:
    from harness import Server
    from run import Run

TITLE = "TCP echo on one loop"
QUESTION = (
    "How much processor time does a server spend per request, and how far is that from a native "
    "server?"
)
SECONDS = (400.0, 25.0)

KINDS = {
    "protocol": "Protocol",
    "buffered": "BufferedProtocol",
    "streams": "streams",
    "sock": "sock_recv and sock_sendall",
}
SIZES = (64, 1024, 10 * 1024, 100 * 1024)
CONNECTIONS = (1, 10, 100, 1000)

# Where the goals are, most rounds are spent.
GOAL_SIZE = 1024
GOAL_CONNECTIONS = (10, 100)


def measure(run: Run) -> dict[str, Any]:
    """Measure each kind of server with each size and number of connections."""
    kinds = {kind: (partial(_servers, run, kind), _cases(run, kind)) for kind in KINDS}
    return {"measured": loading.measure(run, kinds)}


def _servers(run: Run, kind: str) -> list[Server]:
    servers = [echoing.floor_server(run, "127.0.0.1:0")]
    servers += [
        echoing.loop_server(run, contender, f"echo_{kind}.py") for contender in run.contenders
    ]
    if kind == "streams":
        native = Contender(NATIVE, KLOOP)
        servers.append(echoing.loop_server(run, native, "echo_streams.py", "--native"))
    return servers


def _cases(run: Run, kind: str) -> list[Case]:
    if run.quick:
        places = [(10, GOAL_SIZE)]
        if kind == "protocol":
            places += [(1, GOAL_SIZE), (100, GOAL_SIZE), (10, 100 * 1024)]
        return [Case.echo(connections, size, 8, 15) for connections, size in places]
    cases = []
    for connections in CONNECTIONS:
        for size in SIZES:
            if size == GOAL_SIZE and connections in GOAL_CONNECTIONS:
                cases.append(Case.echo(connections, size, 40, 20))
            else:
                cases.append(Case.echo(connections, size, 10, 30 if connections == 1000 else 15))
    return cases


def render(data: dict[str, Any]) -> Section:
    """Make tables by kind, and pictures against the floor and against the load."""
    measured = data["measured"]
    by_kind = {kind: [each for each in measured if each["kind"] == kind] for kind in KINDS}
    tables = []
    for kind, title in KINDS.items():
        tables.append(echoing.cost_table(title, by_kind[kind]))
    for kind in ("protocol", "streams"):
        at_goal = [each for each in by_kind[kind] if each["size"] == GOAL_SIZE]
        tables.append(
            echoing.rate_table(f"Requests per second and latency, {KINDS[kind]}", at_goal)
        )
    native = (
        comparing.compare(f"TCP echo, {NATIVE}, {each['place']}", each["results"], NATIVE)
        for each in by_kind["streams"]
    )
    comparisons = echoing.comparisons("TCP echo", measured, KINDS)
    comparisons += [each for each in native if each is not None]
    return Section(
        tables=tables,
        plots=[_against_floor(by_kind)],
        comparisons=comparisons,
        goals=_goals(measured),
    )


def _against_floor(by_kind: dict[str, list[dict[str, Any]]]) -> Plot:
    panels = []
    for connections in GOAL_CONNECTIONS:
        here = {
            kind: next((e for e in found if _is_at(e, connections)), None)
            for kind, found in by_kind.items()
        }
        points = {kind: each for kind, each in here.items() if each is not None}
        servers = [name for name in echoing.names([*points.values()]) if name not in (FLOOR, AGAIN)]
        series = []
        for name in servers:
            spreads = [comparing.ratio(each["results"], name, FLOOR) for each in points.values()]
            series.append(Series.of(name, spreads))
        panels.append(
            Panel(
                f"{connections} connections, 1 KiB",
                "",
                "server CPU per request / floor",
                [KINDS[kind].replace(" and ", ",\n") for kind in points],
                series,
            )
        )
    return Plot(
        "echo-cpu",
        "TCP echo: processor time per request against a native server (1 is the floor)",
        "bars",
        panels,
        reference=1.0,
    )


def _goals(measured: list[dict[str, Any]]) -> list[Goal]:
    goals = []
    limits = {("protocol", KLOOP): 1.06, ("buffered", KLOOP): 1.12, ("streams", NATIVE): 1.20}
    for each in measured:
        for (kind, name), limit in limits.items():
            spread = comparing.ratio(each["results"], name, FLOOR)
            if each["kind"] == kind and spread and _is_goal(each):
                server = NATIVE if name == NATIVE else KINDS[kind]
                what = f"{server} echo, {each['place']}: CPU per request / floor"
                goals.append(Goal(what, spread.median, limit))
        large = each["size"] == 100 * 1024 and each["kind"] in ("protocol", "buffered")
        streams = each["kind"] == "streams" and _is_goal(each)
        if large or streams:
            comparison = comparing.compare("", each["results"])
            if comparison:
                name = "asyncio.start_server" if streams else KINDS[each["kind"]]
                what = f"{name} echo, {each['place']}: CPU per request / best peer"
                goals.append(Goal(what, comparison.ratio.median, 1.0))
    return goals


def _is_at(each: dict[str, Any], connections: int) -> bool:
    return bool(each["connections"] == connections and each["size"] == GOAL_SIZE)


def _is_goal(each: dict[str, Any]) -> bool:
    return any(_is_at(each, connections) for connections in GOAL_CONNECTIONS)
