"""Run the tests of one module, as the parent says in lines of JSON.

    CONFORMANCE_LOOP=asyncio|kloop|kloop-streams python child.py MODULE TIME_LIMIT

First this writes the list of all tests to stdout, as "Class.test"; stdin answers which of them to
run. Each of these then gets two lines, its name and its result. A test that takes more than
TIME_LIMIT seconds ends the process; what its threads did is then on stderr.
"""

import asyncio
import collections
import faulthandler
import gc
import io
import json
import logging
import os
import signal
import sys
import threading
import unittest
import warnings
from asyncio import unix_events
from typing import Any

import test.support


def use_kloop() -> type:
    """Make asyncio give kloop's loop wherever it gives the selector's. The class of these loops."""
    import kloop

    class Loop(kloop.Loop):
        used = False

        def __init__(self, selector: Any = None) -> None:
            if selector is not None:
                selector.close()  # made by the test, for a loop that would own it
            super().__init__()

        def run_forever(self) -> None:
            Loop.used = True
            super().run_forever()

    stock = asyncio.SelectorEventLoop
    for module in (asyncio, unix_events):
        for name, value in list(vars(module).items()):
            if value is stock:
                setattr(module, name, Loop)
            elif getattr(value, "_loop_factory", None) is stock:
                value._loop_factory = Loop  # of the default policy
    loop = asyncio.new_event_loop()
    print(f"kloop on {loop.driver}", file=sys.stderr)
    loop.close()
    return Loop


def use_native_streams() -> None:
    """Make asyncio's streams kloop's."""
    import kloop.streams

    for name in kloop.streams.__all__:
        for module in (asyncio, asyncio.streams):
            setattr(module, name, getattr(kloop.streams, name))


# Here and not below: processes that multiprocessing starts import this file, too.
wanted = os.environ.get("CONFORMANCE_LOOP", "asyncio")
kloop_class: Any = use_kloop() if wanted != "asyncio" else None
if wanted == "kloop-streams":
    use_native_streams()


class Complaints(logging.Handler):
    """What a test leaves behind or has said about it, by kind."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[tuple[str, str]] = []
        warnings.simplefilter("always", ResourceWarning)
        warnings.showwarning = self.warned  # type: ignore[assignment]
        sys.unraisablehook = self.unraisable
        threading.excepthook = self.unraisable
        logging.getLogger("asyncio").addHandler(self)

    def start(self) -> None:
        self.fds = open_fds()
        self.found.clear()
        test.support.environment_altered = False

    def take(self) -> list[tuple[str, str]]:
        gc.collect()
        left = open_fds() - self.fds
        self.found += [("open file", target) for target in left.elements()]
        if test.support.environment_altered:
            self.found.append(("threads", "threads or processes are left"))
        return self.found

    def warned(self, message: Any, category: type, filename: str, line: int, *_: Any) -> None:
        if issubclass(category, ResourceWarning):
            self.found.append(("ResourceWarning", str(message)))

    def unraisable(self, what: Any) -> None:
        where = getattr(what, "object", None) or getattr(what, "thread", None)
        self.found.append(("unraisable", f"{what.exc_value!r} in {where!r}"))

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(("log", record.getMessage()))


def open_fds() -> collections.Counter[str]:
    """What the open file descriptors refer to."""
    found: collections.Counter[str] = collections.Counter()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
        found[target] += 1
    return found


class Outcome(unittest.TestResult):
    """The result of one test."""

    outcome = "passed"
    detail = ""

    def note(self, outcome: str, detail: str) -> None:
        self.outcome = outcome
        self.detail += detail

    def addError(self, test: Any, err: Any) -> None:
        self.note("failed", self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    addFailure = addError

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            self.addError(subtest, err)

    def addSkip(self, test: Any, reason: str) -> None:
        if self.outcome == "passed":
            self.note("skipped", reason)

    def addUnexpectedSuccess(self, test: Any) -> None:
        self.note("failed", "unexpected success\n")


def load(module: str) -> dict[str, unittest.TestCase]:
    """The module's tests by name; one that is skipped where the module is skipped as a whole."""
    try:
        suite = unittest.defaultTestLoader.loadTestsFromName(module)
    except unittest.SkipTest as exception:
        skip = unittest.skip(str(exception))(lambda: None)
        return {"module": unittest.FunctionTestCase(skip)}
    return {test.id().removeprefix(f"{module}."): test for test in flat(suite)}


def flat(suite: Any) -> list[unittest.TestCase]:
    if isinstance(suite, unittest.TestSuite):
        return [test for part in suite for test in flat(part)]
    return [suite]


def main(module: str, time_limit: float, channel: io.TextIOBase) -> None:
    process = os.getpid()

    def send(message: Any) -> None:
        if os.getpid() == process:  # a test may fork
            channel.write(json.dumps(message) + "\n")
            channel.flush()

    tests = load(module)
    send(list(tests))
    chosen = json.loads(sys.stdin.readline())
    complaints = Complaints()
    gc.collect()
    gc.freeze()  # what is there now need not be looked at after each test
    for name in chosen:
        send(name)
        complaints.start()
        if kloop_class is not None:
            kloop_class.used = False
        outcome = Outcome()
        faulthandler.dump_traceback_later(time_limit, exit=True)
        unittest.TestSuite([tests.pop(name)]).run(outcome)
        found = complaints.take()
        faulthandler.cancel_dump_traceback_later()
        on_kloop = kloop_class is not None and kloop_class.used
        send([outcome.outcome, outcome.detail, found, on_kloop])


if __name__ == "__main__":
    faulthandler.enable()
    # A background job of a shell starts with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(os.dup(1), "w") as channel:
        os.dup2(2, 1)  # what tests print goes elsewhere
        main(sys.argv[1], float(sys.argv[2]), channel)
