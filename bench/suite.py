"""Measure kloop against other loops and write one report: `make bench`.

Each cell is a module of `cells`. What it measured goes to DIR/CELL.json, from which
`--render DIR` makes the report again; the report is DIR/report.md with its pictures.
A cell that fails is reported as failed, the others run all the same, and the exit status
is 1.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cells
import contenders
import harness
import machine
import plots
import report
from harness import BenchError, LoadClient
from run import Progress, Run, two_cpus

if TYPE_CHECKING:
    from section import Section

RUN_FILE = "run.json"
# A cell fails once it takes so many times what it should, and a minute.
PATIENCE = 4
PUBLISHED = machine.ROOT / "docs" / "benchmarks.md"


def main() -> int:
    """Measure, or read what was measured, and write the report."""
    settings = _parse()
    harness.end_on_signals()
    if settings.render is None:
        folder = settings.output or _folder()
        folder.mkdir(parents=True, exist_ok=True)
        _measure(settings, folder)
    else:
        folder = settings.render
    facts = _read(folder / RUN_FILE)
    measured = {
        name: _read(folder / f"{name}.json")
        for name in cells.NAMES
        if (folder / f"{name}.json").exists()
    }
    sections, failed = report.sections(measured)
    _write_report(folder / "report.md", "", facts, measured, sections, failed)
    if settings.publish:
        _check_whole(facts, measured)
        _write_report(PUBLISHED, "benchmarks/", facts, measured, sections, failed)
    for name, reason in failed.items():
        print(f"suite.py: {name} failed: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few cases, in under three minutes")
    parser.add_argument("--only", type=_names, metavar="CELL,...", help=", ".join(cells.NAMES))
    parser.add_argument(
        "--loops", type=_loops, default=contenders.LOOPS, metavar="LOOP,...", help="which to run"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: bench/results/TIME")
    parser.add_argument("--render", type=Path, metavar="DIR", help="only write the report of DIR")
    parser.add_argument(
        "--publish", action="store_true", help="write docs/benchmarks.md and its pictures too"
    )
    settings = parser.parse_args()
    if settings.publish and (settings.quick or settings.only):
        parser.error("only a full run of all cells is published")
    return settings


def _names(text: str) -> list[str]:
    chosen = [part.strip() for part in text.split(",")]
    for name in chosen:
        if name not in cells.NAMES:
            raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(cells.NAMES)}")
    return [name for name in cells.NAMES if name in chosen]


def _loops(text: str) -> tuple[str, ...]:
    chosen = [part.strip() for part in text.split(",")]
    for name in chosen:
        if name not in contenders.LOOPS:
            known = ", ".join(contenders.LOOPS)
            raise argparse.ArgumentTypeError(f"'{name}' is none of {known}")
    return tuple(name for name in contenders.LOOPS if name in chosen)


def _folder() -> Path:
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    return harness.BENCH / "results" / now


def _check_whole(facts: dict[str, Any], measured: dict[str, Any]) -> None:
    """Let only a full run of all cells be published."""
    absent = [name for name in cells.NAMES if name not in measured]
    if facts["quick"] or absent:
        reason = "a quick run" if facts["quick"] else f"a run without {', '.join(absent)}"
        raise BenchError(f"{reason} is not published")


def _write_report(
    path: Path,
    pictures: str,
    facts: dict[str, Any],
    measured: dict[str, Any],
    sections: dict[str, Section],
    failed: dict[str, str],
) -> None:
    folder = path.parent / pictures
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    for section in sections.values():
        for plot in section.plots:
            if not plot.is_empty:
                plots.write(plot, folder / f"{plot.name}.svg")
    text = report.render(facts, measured, sections, failed, pictures)
    path.write_text(text, encoding="utf-8")
    print(f"report: {path}")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _measure(settings: argparse.Namespace, folder: Path) -> None:
    names = settings.only or list(cells.NAMES)
    server_cpu, client_cpu = two_cpus()
    here, left_out = contenders.find(settings.loops)
    if not any(each.loop == contenders.KLOOP for each in here):
        raise BenchError(f"kloop: {left_out.get(contenders.KLOOP, 'not chosen')}")
    loaded = {name: cells.load(name) for name in names}
    run = Run(
        quick=settings.quick,
        server_cpu=server_cpu,
        client_cpu=client_cpu,
        cpus=harness.cpus(),
        client=LoadClient(),
        contenders=here,
        progress=Progress({name: cell.SECONDS[settings.quick] for name, cell in loaded.items()}),
    )
    facts = {
        **machine.facts([each.loop for each in here]),
        "quick": settings.quick,
        "left_out": {**left_out, **contenders.not_installed()},
        "server_cpu": server_cpu,
        "client_cpu": client_cpu,
    }
    started = time.monotonic()
    for name, cell in loaded.items():
        run.progress.begin(name)
        run.failures = {}
        run.bursts = run.disturbed = 0
        began = time.monotonic()
        content: dict[str, Any] = {}
        try:
            with harness.time_limit(PATIENCE * cell.SECONDS[settings.quick] + 60):
                content["data"] = cell.measure(run)
        except Exception as error:
            traceback.print_exc()
            content["error"] = str(error) or type(error).__name__
        content |= {
            "failures": run.failures,
            "bursts": run.bursts,
            "disturbed": run.disturbed,
            "seconds": time.monotonic() - began,
        }
        _write(folder / f"{name}.json", content)
        run.progress.end()
        _write(folder / RUN_FILE, {**facts, "seconds": time.monotonic() - started})


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"suite.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
