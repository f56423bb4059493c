"""The runner of tests/conformance, on a small suite whose results are known."""

import asyncio
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from conformance.__main__ import judge
from conformance.runner import Result, run
from conformance.waivers import Waivers

pytestmark = pytest.mark.skipif(
    "CI" not in os.environ and find_spec("test.support") is None,
    reason="this Python comes without its tests",
)

SUITE = """
import asyncio, logging, os, selectors, signal, socket, test.support, threading, unittest, warnings

class Tests(unittest.TestCase):
    def test_passes(self): pass

    def test_runs_a_loop(self):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    def test_runs_a_loop_with_a_selector(self):
        loop = asyncio.SelectorEventLoop(selectors.PollSelector())
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    def test_makes_a_loop(self): asyncio.new_event_loop().close()

    def test_fails(self): self.fail("on purpose")

    def test_fails_in_part(self):
        for part in range(3):
            with self.subTest(part=part): self.assertNotEqual(part, 1)

    @unittest.expectedFailure
    def test_passes_unexpectedly(self): pass

    def test_is_skipped(self): self.skipTest("why not")

    def test_hangs(self): threading.Event().wait()

    def test_ends_the_process(self): os._exit(7)

    def test_kills_the_process(self): os.kill(os.getpid(), signal.SIGKILL)

    def test_leaves_a_file_open(self): os.open("/dev/null", os.O_RDONLY)

    def test_leaves_a_socket_to_the_collector(self): self.sock = socket.socket()

    def test_leaves_a_thread(self): test.support.environment_altered = True

    def test_raises_in_a_destructor(self):
        class Bad:
            def __del__(self): raise ValueError("on purpose")
        Bad()

    def test_raises_in_a_thread(self):
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()

    def test_logs_an_error(self): logging.getLogger("asyncio").error("on purpose")

    def test_expects_a_warning(self):
        with self.assertWarns(ResourceWarning): warnings.warn("expected", ResourceWarning)

    def test_can_be_interrupted(self):
        with self.assertRaises(KeyboardInterrupt): signal.raise_signal(signal.SIGINT)

    def test_prints(self): print("to stdout")

class Fixtures(unittest.TestCase):
    def setUpClass(): raise ValueError("on purpose")
    def test_never(self): pass
"""

RunTests = Callable[..., dict[str, Result]]


@pytest.fixture
def run_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunTests:
    """Runs the named tests of SUITE. Their results, by name."""
    (tmp_path / "suite.py").write_text(SUITE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run_tests(*names: str, loop: str = "asyncio", limit: float = 20) -> dict[str, Result]:
        def choose(all_names: list[str]) -> list[str]:
            assert set(names) <= set(all_names)
            return list(names)

        results = asyncio.run(run("suite", loop, choose, limit))
        assert list(results) == list(names)
        return results

    return run_tests


def test_results(run_tests: RunTests) -> None:
    expected = {
        "Tests.test_passes": ("passed", ""),
        "Tests.test_prints": ("passed", ""),
        "Tests.test_expects_a_warning": ("passed", ""),
        "Tests.test_can_be_interrupted": ("passed", ""),
        "Tests.test_fails": ("failed", "AssertionError: on purpose"),
        "Tests.test_fails_in_part": ("failed", "AssertionError: 1 == 1"),
        "Tests.test_passes_unexpectedly": ("failed", "unexpected success"),
        "Tests.test_is_skipped": ("skipped", "why not"),
        "Fixtures.test_never": ("failed", "ValueError: on purpose"),
    }
    results = run_tests(*expected)
    for name, (outcome, last_line) in expected.items():
        assert (results[name].outcome, str(results[name])[-len(last_line) :]) == (
            outcome,
            last_line,
        )
        assert results[name].complaints == []


def test_a_test_that_takes_its_process_down_is_charged_and_the_others_run(
    run_tests: RunTests,
) -> None:
    names = ["passes", "ends_the_process", "prints", "kills_the_process", "runs_a_loop"]
    results = run_tests(*(f"Tests.test_{name}" for name in names))
    outcomes = [result.outcome for result in results.values()]
    assert outcomes == ["passed", "failed", "passed", "failed", "passed"]
    assert "status 7" in results["Tests.test_ends_the_process"].detail
    assert "status -9" in results["Tests.test_kills_the_process"].detail


def test_a_test_that_hangs_is_charged_with_its_stack_and_the_others_run(
    run_tests: RunTests,
) -> None:
    results = run_tests("Tests.test_hangs", "Tests.test_passes", limit=0.5)
    assert results["Tests.test_hangs"].outcome == "failed"
    assert "in test_hangs" in results["Tests.test_hangs"].detail
    assert results["Tests.test_passes"].outcome == "passed"


@pytest.mark.parametrize(
    ("test", "kind"),
    [
        ("leaves_a_file_open", "open file"),
        ("leaves_a_socket_to_the_collector", "ResourceWarning"),
        ("leaves_a_thread", "threads"),
        ("raises_in_a_destructor", "unraisable"),
        ("raises_in_a_thread", "unraisable"),
        ("logs_an_error", "log"),
    ],
)
def test_what_a_test_leaves_behind_is_its_own(run_tests: RunTests, test: str, kind: str) -> None:
    results = run_tests(f"Tests.test_{test}", "Tests.test_passes")
    left = results[f"Tests.test_{test}"]
    assert left.outcome == "passed"
    assert [found for found, _ in left.complaints] == [kind]
    assert results["Tests.test_passes"].clean


def test_it_is_known_which_tests_ran_a_loop_of_kloops(run_tests: RunTests) -> None:
    names = ["runs_a_loop", "runs_a_loop_with_a_selector", "makes_a_loop", "passes"]
    results = run_tests(*(f"Tests.test_{name}" for name in names), loop="kloop")
    assert all(result.clean for result in results.values())
    assert [result.on_kloop for result in results.values()] == [True, True, False, False]
    results = run_tests("Tests.test_runs_a_loop")
    assert not results["Tests.test_runs_a_loop"].on_kloop


def test_a_module_that_does_not_load_is_a_failure() -> None:
    results = asyncio.run(run("no_such_module", "asyncio", lambda names: names, 20))
    assert [result.outcome for result in results.values()] == ["failed"]


PASSED, FAILED, SKIPPED = Result("passed"), Result("failed", "error"), Result("skipped")
LEFT = Result("passed", complaints=[("open file", "one")])
LEFT_TWO = Result("passed", complaints=[("open file", "one"), ("open file", "two")])
WARNED = Result("passed", complaints=[("ResourceWarning", "one")])


@pytest.mark.parametrize(
    ("kloop", "again", "stock", "verdict"),
    [
        (FAILED, FAILED, PASSED, "failed"),
        (FAILED, LEFT, PASSED, "failed"),
        (FAILED, PASSED, PASSED, "passed when run again"),
        (FAILED, FAILED, FAILED, "failed on asyncio, too"),
        (FAILED, FAILED, SKIPPED, "failed"),
        (SKIPPED, SKIPPED, PASSED, "failed"),
        (SKIPPED, SKIPPED, SKIPPED, "skipped"),
        (LEFT, LEFT, PASSED, "failed"),
        (LEFT, LEFT, LEFT, "passed"),
        (LEFT, PASSED, PASSED, "passed when run again"),
        (LEFT_TWO, LEFT_TWO, LEFT, "failed"),
        (LEFT, LEFT, LEFT_TWO, "passed"),
        (WARNED, WARNED, LEFT, "failed"),
    ],
)
def test_verdicts(kloop: Result, again: Result, stock: Result, verdict: str) -> None:
    assert judge("module.Class.test", kloop, again, stock).what == verdict


def test_exclusions_are_of_modules_and_classes_and_tests(tmp_path: Path) -> None:
    file = tmp_path / "waivers.toml"
    file.write_text("""
[excluded]
"module" = "all"
"other.Class" = "class"
[waived.all]
"third.Class.test" = "waived"
[waived."2.7"]
"third.Class.old" = "old"
""")
    waivers = Waivers(file)
    assert waivers.excluded("module.Class.test") == "all"
    assert waivers.excluded("other.Class.test") == "class"
    assert waivers.excluded("other.Classical.test") is None
    assert waivers.excluded("modules.Class.test") is None
    assert waivers.waived == {"third.Class.test": "waived"}
