"""Whether a kernel thread submits for a loop's ring (IORING_SETUP_SQPOLL), and on which CPU."""

import os
from collections.abc import Collection
from typing import Literal, NamedTuple

__all__ = ["IDLE_MS", "Plan", "SqPoll", "plan_for_loop", "plan_for_workers"]

IDLE_MS = 4
"""Milliseconds without work before a poller sleeps: one tick of a kernel with HZ=250. While the
gaps between requests are shorter, it keeps its CPU busy."""

LONGEST_IDLE_MS = 2**31 - 1


class SqPoll(NamedTuple):
    """What came of a loop's `sqpoll`."""

    active: bool
    """Whether a kernel thread submits for the loop."""
    cpu: int | None
    """The CPU it is pinned to; None if it roams, or there is none."""
    idle_ms: int | None
    """Milliseconds without work before it sleeps; None if there is none."""
    reason: str
    """Why, in words."""


class Plan(NamedTuple):
    """What is to be tried: plain data, which a worker of serve_per_core() gets as JSON."""

    wanted: bool
    required: bool
    """Whether it is an error where it cannot be had."""
    cpu: int | None
    idle_ms: int
    reason: str


Option = Literal["auto"] | bool | int


def plan_for_loop(option: Option | Plan) -> Plan:
    """The plan for a single loop. TypeError or ValueError for what is no option.

    Which CPUs the other threads of a program use is not known, so "auto" asks for two signs: the
    loop's thread is pinned to one CPU, and the main thread may use others.
    """
    if isinstance(option, Plan):
        return option
    here = os.sched_getaffinity(0)
    spare = os.sched_getaffinity(os.getpid()) - here if len(here) == 1 else set()
    why = "the loop's thread is pinned to one CPU, and the main thread may use no other"
    if len(here) > 1:
        why = "the loop's thread is not pinned to one CPU, so none is known to be spare"
    return _plan(option, spare, why)


def plan_for_workers(option: Option, cpus: Collection[int]) -> Plan:
    """The plan for each of the workers that run on `cpus`: they share one poller."""
    spare = os.sched_getaffinity(0) - set(cpus)
    return _plan(option, spare, "every CPU of the affinity mask has a worker")


def _plan(option: object, spare: Collection[int], no_spare: str) -> Plan:
    cpu = max(spare, default=None)
    if option == "auto":
        if cpu is None:
            return Plan(False, False, None, IDLE_MS, f"auto: {no_spare}")
        return Plan(True, False, cpu, IDLE_MS, f"auto: CPU {cpu} is spare")
    if isinstance(option, bool):
        idle_ms = IDLE_MS
    elif isinstance(option, int):
        idle_ms = option
        if option < 1:
            raise ValueError(f"sqpoll must be at least 1 millisecond, not {option!r}")
        if option > LONGEST_IDLE_MS:
            raise ValueError(f"sqpoll must be at most {LONGEST_IDLE_MS} milliseconds")
    elif isinstance(option, str):
        raise ValueError(f'sqpoll must be "auto", a bool or milliseconds, not {option!r}')
    else:
        kind = type(option).__name__
        raise TypeError(f'sqpoll must be "auto", a bool or an int of milliseconds, not {kind}')
    if option is False:
        return Plan(False, False, None, IDLE_MS, "not asked for")
    where = f"on CPU {cpu}, which is spare" if cpu is not None else f"on any CPU: {no_spare}"
    return Plan(True, True, cpu, idle_ms, f"asked for; {where}")
