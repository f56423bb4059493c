"""The benchmark suite's report, and what it does with a server that fails."""

import report
from figures import Spread
from harness import BenchError
from run import Progress, Run
from section import Comparison, Goal, Panel, Plot, Section, Series, Table

FACTS = {
    "date": "2026-01-02",
    "python": "3.14.0",
    "build": "cpython, GCC",
    "kernel": "6.18",
    "processor": "CPU",
    "cpus": 2,
    "memory_gib": 4.0,
    "load_average": 0.1,
    "versions": {"kloop": "0.1.0", "uvloop": "0.23.0"},
    "left_out": {"zloop": "does not install: no wheel"},
    "quick": False,
    "seconds": 61.0,
    "server_cpu": 0,
    "client_cpu": 1,
}


def comparison(what, ratio):
    return Comparison(what, "us", 5.0 * ratio, "uvloop", 5.0, Spread.of([ratio]), Spread.of([1.0]))


def test_a_table_aligns_numbers_to_the_right():
    text = report.table(Table(["what", ">us"], [["a", "1.5"]], "Title", ["A note."]))
    assert text == "### Title\n\n| what | us |\n| --- | --: |\n| a | 1.5 |\n\nA note."


def test_losses_are_listed_the_largest_first_and_wins_are_not():
    text = report.losses([comparison("a", 1.1), comparison("b", 0.9), comparison("c", 1.5)])
    assert text.startswith("In 2 of the 3 comparisons")
    assert [line.split(" | ")[0] for line in text.splitlines()[4:]] == ["| c", "| a"]


def test_no_loss_is_said_in_words():
    assert report.losses([comparison("a", 1.0)]) == "Nowhere in the 1 comparisons below."


def test_a_goal_that_is_missed_says_by_how_much():
    text = report.goals_table(
        [
            Goal("cost", 1.10, 1.06),
            Goal("cost of another", 1.06, 1.06),
            Goal("gain", 1.10, 1.15, at_least=True),
            Goal("another gain", 1.20, 1.15, at_least=True),
        ]
    )
    verdicts = [line.split(" | ")[-1].removesuffix(" |") for line in text.splitlines()[2:]]
    assert verdicts == ["**missed by 0.04**", "met", "**missed by 0.05**", "met"]


def test_the_report_says_what_was_left_out_and_what_failed():
    measured = {
        "unix": {"error": "no servers", "failures": {}},
        "udp": {"data": {}, "failures": {"zloop": "it does not listen"}},
    }
    sections = {"udp": Section([Table(["a"], [["b"]])])}
    text = report.render(FACTS, measured, sections, {"unix": "no servers"}, "")
    assert "zloop (does not install: no wheel)" in text
    assert "**Failed:** no servers" in text
    assert "- zloop: it does not listen" in text
    assert "| b |" in text


def test_the_report_says_where_the_machine_was_not_quiet():
    quiet = {"data": {}, "failures": {}, "bursts": 100, "disturbed": 2}
    loud = {"data": {}, "failures": {}, "bursts": 100, "disturbed": 3}
    text = report.render(FACTS, {"udp": quiet, "unix": loud}, {}, {}, "")
    before, _, after = text.partition("## Unix stream echo")
    assert "not quiet" not in before
    assert "in 3 of 100 bursts" in after


def test_a_picture_of_nothing_is_not_shown():
    nothing = Panel("p50", "", "", ["1"], [Series("kloop", [None])])
    something = Panel("p99", "", "", ["1"], [Series("kloop", [2.0])])
    plots = [
        Plot("empty", "Empty", "lines", [nothing]),
        Plot("half", "Half", "lines", [nothing, something]),
    ]
    measured = {"udp": {"data": {}, "failures": {}}}
    text = report.render(FACTS, measured, {"udp": Section([], plots)}, {}, "pictures/")
    assert "![Half](pictures/half.svg)" in text
    assert "empty.svg" not in text


def test_a_cell_that_failed_or_cannot_be_rendered_fails_alone():
    measured = {
        "tls": {"error": "no servers", "failures": {}},
        "udp": {"data": {"nonsense": 1}, "failures": {}},
        "unix": {"data": {"measured": []}, "failures": {}},
    }
    sections, failed = report.sections(measured)
    assert list(sections) == ["unix"]
    assert failed["tls"] == "no servers"
    assert "cannot be rendered" in failed["udp"]


class FakeServer:
    def __init__(self, name):
        self.name = name


class FakeClient:
    """Fails whenever it is to visit the server `broken`."""

    def __init__(self):
        self.visits = []

    def run(self, servers, *, rounds, **_):
        busy = {"requests": 1, "seconds": 1.0, "server_cpu_us": 1.0, "client_cpu_us": 1e6}
        idle = {**busy, "client_cpu_us": 0.5e6}
        names = [server.name for server in servers]
        self.visits.append((names, rounds))
        if "broken" in names:
            raise BenchError("target 'broken' replied wrongly")
        return [{"name": name, "rounds": [busy, idle]} for name in names]


def run_with(client):
    progress = Progress({"cell": 1.0}, cell="cell")
    return Run(False, 0, 1, [0, 1], client, [], progress)


def test_a_server_that_fails_is_left_out_and_named():
    client = FakeClient()
    run = run_with(client)
    servers = [FakeServer("kloop"), FakeServer("broken"), FakeServer("uvloop")]
    results = run.visit(servers, connections=10, size=64, rounds=20)
    assert list(results) == ["kloop", "uvloop"]
    assert run.failures == {"broken, 10 connections x 64 B": "target 'broken' replied wrongly"}
    assert client.visits[-1] == (["kloop", "uvloop"], 20)
    assert (run.disturbed, run.bursts) == (2, 4)


def test_bad_luck_gets_another_chance():
    class Unlucky(FakeClient):
        def run(self, servers, **options):
            if not self.visits:
                self.visits.append("bad luck")
                raise BenchError("cannot wait for replies")
            return super().run(servers, **options)

    run = run_with(Unlucky())
    results = run.visit([FakeServer("kloop")], connections=1, size=64, rounds=20)
    assert list(results) == ["kloop"]
    assert run.failures == {}
