"""Run CPython's own tests of asyncio on kloop.

    python -m tests.conformance [-v] [-k TEXT] [-j N] [--limit SECONDS] [MODULE ...]

Runs the running interpreter's test.test_asyncio with kloop as the loop, and its tests of streams
once more, as native_streams, with kloop's streams in place of asyncio's. What does not pass there,
or leaves something behind (open files, warnings, error messages), is run again on its own, on kloop
and on the stock loop: it has failed if kloop is worse than the stock loop both times. waivers.toml
says what does not count, and why. KLOOP_DRIVER chooses kloop's driver.
"""

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import kloop

from .runner import Result, run
from .waivers import Waivers

SUITE = "test.test_asyncio"

STREAMS = "native_streams"
"""What stands for test_streams with kloop's native streams in place of asyncio's."""

LEAST_ON_KLOOP = 1000
"""If fewer tests than this ran on a loop of kloop's, they were not about kloop."""


class Verdict(NamedTuple):
    what: str
    test: str
    result: Result


class Conformance:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.waivers = Waivers(Path(__file__).with_name("waivers.toml"))
        self.slots = asyncio.Semaphore(options.j)

    async def module(self, module: str) -> list[Verdict]:
        async with self.slots:
            start = time.monotonic()
            verdicts = await self.run_module(module)
            seconds = time.monotonic() - start
            if verdicts:
                print(f"{module:24} {summary(verdicts)} in {seconds:.1f}s", flush=True)
            return verdicts

    async def run_module(self, module: str) -> list[Verdict]:
        verdicts = []

        def choose(names: list[str]) -> list[str]:
            chosen = []
            for name in names:
                test = f"{module}.{name}"
                if self.options.k not in test:
                    continue
                if reason := self.waivers.excluded(test):
                    verdicts.append(Verdict("excluded", test, Result("skipped", reason)))
                else:
                    chosen.append(name)
            # The waived ones last: one that fails may leave something to those after it.
            return sorted(chosen, key=lambda name: f"{module}.{name}" in self.waivers.waived)

        path, limit = f"{SUITE}.{module}", self.options.limit
        loop = "kloop"
        if module == STREAMS:
            path, loop = f"{SUITE}.test_streams", "kloop-streams"
        odd: dict[str, Result] = {}
        for name, result in (await run(path, loop, choose, limit)).items():
            test = f"{module}.{name}"
            if test in self.waivers.waived:
                what = "passed though waived" if result.clean else "waived"
                verdicts.append(Verdict(what, test, result))
            elif result.clean:
                verdicts.append(Verdict("passed", test, result))
            else:
                odd[name] = result

        def choose_odd(names: list[str]) -> list[str]:
            return [name for name in names if name in odd]

        if odd:
            again = await run(path, loop, choose_odd, limit)
            stock = await run(path, "asyncio", choose_odd, limit)
            for name, result in odd.items():
                results = result, again.get(name, result), stock.get(name, Result("passed"))
                verdicts.append(judge(f"{module}.{name}", *results))
        return verdicts


def judge(test: str, result: Result, again: Result, stock: Result) -> Verdict:
    """The verdict on a test that was run on kloop, again on kloop, and on the stock loop."""
    if result.is_worse_than(stock):
        if again.is_worse_than(stock):
            return Verdict("failed", test, again)
        return Verdict("passed when run again", test, result)
    if result.outcome == "failed":
        return Verdict("failed on asyncio, too", test, result)
    return Verdict(result.outcome, test, result)


def summary(verdicts: list[Verdict]) -> str:
    counts = Counter({"passed": 0, "failed": 0})
    counts.update(verdict.what for verdict in verdicts)
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def modules() -> list[str]:
    """The modules of the suite, the largest first: they take longest."""
    spec = find_spec(SUITE)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    [folder] = spec.submodule_search_locations
    files = sorted(Path(folder).glob("test_*.py"), key=lambda file: -file.stat().st_size)
    return [*(file.stem for file in files), STREAMS]


def show(verdicts: list[Verdict], verbose: bool) -> None:
    for what, detailed in {
        "waived": verbose,
        "failed on asyncio, too": verbose,
        "passed though waived": False,
        "passed when run again": True,
        "failed": True,
    }.items():
        chosen = [verdict for verdict in verdicts if verdict.what == what]
        if chosen:
            print(f"\n{what}:")
        for _, test, result in chosen:
            text = str(result)
            print(f"  {test}")
            if detailed and text:
                lines = text.splitlines() if verbose else [text.splitlines()[-1][:200]]
                print(*(f"      {line}" for line in lines), sep="\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("-k", metavar="TEXT", default="", help="only tests with this in their name")
    parser.add_argument("-v", action="store_true", help="show all tracebacks and warnings")
    # Two for each CPU: many tests wait for something most of their time.
    parser.add_argument("-j", metavar="N", type=int, default=2 * (os.process_cpu_count() or 1))
    parser.add_argument("--limit", metavar="SECONDS", type=float, default=30.0, help="for a test")
    parser.add_argument("module", nargs="*", help="as test_events; by default all of them")
    return parser.parse_args()


async def main() -> int:
    options = parse_options()
    if find_spec("test") is None or find_spec(SUITE) is None:
        print(f"skipped: {sys.executable} comes without the package {SUITE}")
        return 1 if "CI" in os.environ else 0
    with contextlib.closing(kloop.new_event_loop()) as loop:
        driver = loop.driver
    print(f"{SUITE} of Python {sys.version.split()[0]} on kloop with {driver}", flush=True)
    start = time.monotonic()
    conformance = Conformance(options)
    chosen = options.module or modules()
    runs = await asyncio.gather(*(conformance.module(module) for module in chosen))
    verdicts = [verdict for run in runs for verdict in run]
    show(verdicts, options.v)
    status = int(not verdicts or any(verdict.what == "failed" for verdict in verdicts))
    on_kloop = sum(verdict.result.on_kloop for verdict in verdicts)
    if not options.k and not options.module and on_kloop < LEAST_ON_KLOOP:
        print(f"\nonly {on_kloop} tests ran a loop of kloop's, not {LEAST_ON_KLOOP} or more")
        status = 1
    seconds = time.monotonic() - start
    print(f"\n=== {summary(verdicts)}, {on_kloop} ran on kloop in {seconds:.1f}s ===")
    return status


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
