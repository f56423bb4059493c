"""serve_per_core: handlers that cannot be served, and places that it cannot be called from."""

import asyncio
import functools
import socket
import sys
from pathlib import Path
from typing import Any

import handlers
import pytest
from server_process import Serve, Server, program

import kloop
from support import in_thread

REMEDY = 'pass its name as "module:name"'


async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


def nested() -> Any:
    def factory() -> handlers.Echo:
        return handlers.Echo()

    return factory


class Callable:
    def __call__(self) -> handlers.Echo:
        return handlers.Echo()


renamed = handlers.make_echo
shadowed = handler


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (lambda: handlers.Echo(), f"is a lambda, which the workers cannot import: .*{REMEDY}"),
        (nested(), f"is a nested function, which the workers cannot import: .*{REMEDY}"),
        (handlers.Nested().method, f"cannot be imported by the workers: .*{REMEDY}"),
        (functools.partial(handlers.make_echo), f"cannot be imported by the workers: .*{REMEDY}"),
        (Callable(), f"cannot be imported by the workers: .*{REMEDY}"),
        (1, "the handler must be callable or a string, not int"),
        (None, "the handler must be callable or a string, not NoneType"),
        (b"handlers:Echo", "the handler must be callable or a string, not bytes"),
    ],
    ids=repr,
)
def test_handlers_that_cannot_be_imported(handler: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        kloop.serve_per_core(handler, port=0)


def test_a_handler_that_another_has_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = handlers.make_echo
    monkeypatch.setattr(handlers, "make_echo", handlers.Echo)
    with pytest.raises(TypeError, match="handlers:make_echo is not <function make_echo"):
        kloop.serve_per_core(replaced, port=0)


@pytest.mark.parametrize("name", ["", "handlers", "handlers:", ":Echo", "handlers.Echo"])
def test_names_of_another_form(name: str) -> None:
    with pytest.raises(ValueError, match=r'a handler is named as "package\.module:name"'):
        kloop.serve_per_core(name, port=0)


def test_a_negative_drain_timeout() -> None:
    with pytest.raises(ValueError, match="drain_timeout must not be negative: -1"):
        kloop.serve_per_core(handlers.Echo, port=0, drain_timeout=-1)


def test_another_thread_than_the_main_one() -> None:
    def body() -> None:
        with pytest.raises(RuntimeError, match="must be called in the main thread"):
            kloop.serve_per_core(handlers.Echo, port=0)

    with in_thread(body):
        pass


def test_arguments_are_checked_before_anything_is_opened() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(TypeError):
            kloop.serve_per_core(lambda: None, port=taken.getsockname()[1])
        with pytest.raises(ValueError, match="cores"):
            kloop.serve_per_core(handlers.Echo, port=taken.getsockname()[1], cores=0)


# What a worker raises, the call raises

CATCH = """
import threading, traceback
try:
    serve({handler})
except Exception as error:
    print(type(error).__module__, type(error).__qualname__, flush=True)
    print(json.dumps(str(error)), flush=True)
    print(type(error.__cause__).__qualname__, flush=True)
    print(json.dumps(str(error.__cause__)), flush=True)
    print(threading.active_count(), len(__import__("os").listdir("/proc/self/task")))
"""


def raised(script: Serve, handler: str) -> tuple[str, str, str]:
    """The class and text of what the call raises, and the text of its cause."""
    import json

    text = program("'handlers:Echo'").partition("\nserve(")[0] + CATCH.format(handler=handler)
    end = script(text).end()
    assert end.status == 0
    assert end.errors == ""
    kind, text, cause, trace, threads = end.output
    assert cause == "WorkerError"
    assert threads == "1 1"
    assert json.loads(trace).startswith("core ")
    return kind, json.loads(text), json.loads(trace)


def test_a_name_that_the_module_lacks(script: Serve) -> None:
    kind, text, trace = raised(script, "'handlers:missing'")
    assert kind == "builtins AttributeError"
    assert text == "module 'handlers' has no attribute 'missing'"
    assert "Traceback" in trace


def test_a_module_that_does_not_exist(script: Serve) -> None:
    kind, text, _ = raised(script, "'no_such_module:x'")
    assert kind == "builtins ModuleNotFoundError"
    assert text == "No module named 'no_such_module'"


def test_a_name_of_something_that_cannot_be_called(script: Serve) -> None:
    kind, text, _ = raised(script, "'handlers:not_callable'")
    assert kind == "builtins TypeError"
    assert text == "the handler 'handlers:not_callable' is a int, not a callable"


@pytest.mark.parametrize(
    ("statement", "kind", "text"),
    [
        ("raise LookupError('at import')", "builtins LookupError", "at import"),
        ("1 / 0", "builtins ZeroDivisionError", "division by zero"),
        ("def broken(:", "builtins SyntaxError", "invalid syntax (broken.py, line 1)"),
        (
            "b'\\xff'.decode()",
            "kloop.percore WorkerError",
            "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0: "
            "invalid start byte",
        ),
        (
            "class Own(Exception): pass\nraise Own('mine')",
            "kloop.percore WorkerError",
            "broken.Own: mine",
        ),
        ("raise SystemExit(3)", "kloop.percore WorkerError", "builtins.SystemExit: 3"),
        ("open('/no/such/file')", "builtins FileNotFoundError", "No such file"),
    ],
    ids=lambda value: str(value).split("\n")[0],
)
def test_a_module_that_fails_at_import(
    script: Serve, tmp_path: Path, statement: str, kind: str, text: str
) -> None:
    (tmp_path / "broken.py").write_text(statement)
    got, message, trace = raised(script, "'broken:handler'")
    assert got == kind
    assert text in message
    assert "broken.py" in trace


def test_an_extension_that_refuses_interpreters_with_their_own_gil(
    script: Serve, tmp_path: Path
) -> None:
    (tmp_path / "tracing.py").write_text("import tracemalloc\n")
    kind, text, trace = raised(script, "'tracing:handler'")
    assert kind == "builtins ImportError"
    assert "_tracemalloc" in text
    assert 'workers="processes"' in text
    assert "tracing.py" in trace


def end_of_failure(server: Server) -> str:
    end = server.end()
    assert end.status == 1, end
    return end.errors


SCRIPT = """\
import kloop


async def handler(reader, writer):
    writer.close()


kloop.serve_per_core({}, port=0)
"""


@pytest.mark.parametrize("handler", ["handler", "'__main__:handler'"])
def test_a_script_without_a_guard(script: Serve, handler: str) -> None:
    errors = end_of_failure(script(SCRIPT.format(handler)))
    assert "RuntimeError: serve_per_core() was called in a worker" in errors
    assert 'if __name__ == "__main__":' in errors


def test_a_handler_of_the_command_line() -> None:
    text = "import kloop\ndef handler(): ...\nkloop.serve_per_core(handler, port=0)"
    with Server(["-c", text]) as server:
        assert "TypeError: a handler of the interactive session" in end_of_failure(server)


def test_a_handler_module_that_serves_at_import(script: Serve, tmp_path: Path) -> None:
    (tmp_path / "serving.py").write_text(SCRIPT.format("handler"))
    errors = end_of_failure(script("import kloop\nkloop.serve_per_core('serving:handler', port=0)"))
    assert "RuntimeError: serve_per_core() was called in a worker" in errors


def test_a_worker_failing_to_start_leaves_the_others_no_time(script: Serve, tmp_path: Path) -> None:
    """One core's import fails, another's lasts: the call ends when both have."""
    (tmp_path / "uneven.py").write_text(
        "import kloop\n"
        "if kloop.current_core().index == 1: raise LookupError('core 1')\n"
        "from handlers import Echo\n"
    )
    kind, text, trace = raised(script, "'uneven:Echo', cores=3")
    assert (kind, text) == ("builtins LookupError", "core 1")
    assert trace.startswith("core 1 failed:")


def test_an_exception_of_on_ready_ends_the_call(script: Serve) -> None:
    text = program("'handlers:Echo'", "on_ready=fail", before="def fail(_): raise LookupError('x')")
    errors = end_of_failure(script(text))
    assert errors.endswith("LookupError: x\n")


def test_the_process_ends_after_a_failure_without_help(script: Serve) -> None:
    errors = end_of_failure(script("import kloop\nkloop.serve_per_core('a:b', port=0)"))
    assert errors.endswith("ModuleNotFoundError: No module named 'a'\n")
    assert "The above exception was the direct cause" in errors
    assert sys.version_info >= (3, 13)
