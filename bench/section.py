"""A part of the report as plain data: tables, plots, comparisons and goals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from figures import Spread


@dataclass(frozen=True)
class Table:
    """A Markdown table. `>` before a name in `head` aligns the column to the right."""

    head: list[str]
    rows: list[list[str]]
    title: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Series:
    """A line or a group of bars: a value (None: not measured) for each place on the x axis."""

    name: str
    values: list[float | None]
    # The ends of the error bars, if there are any.
    lower: list[float | None] = field(default_factory=list)
    upper: list[float | None] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, spreads: Sequence[Spread | None]) -> Self:
        """Make it of medians, with the quartiles as error bars."""
        return cls(
            name,
            [None if each is None else each.median for each in spreads],
            [None if each is None else each.lower for each in spreads],
            [None if each is None else each.upper for each in spreads],
        )


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    # Names below groups of bars; of lines, the numbers on the x axis as text.
    places: list[str]
    series: list[Series]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return all(value is None for series in self.series for value in series.values)


@dataclass(frozen=True)
class Plot:
    """A picture that answers one question, with one or more panels side by side."""

    name: str
    title: str
    kind: Literal["bars", "lines"]
    panels: list[Panel]
    log_y: bool = False
    # A line across at this value: what all others are compared with.
    reference: float | None = None
    alt: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return all(panel.is_empty for panel in self.panels)


@dataclass(frozen=True)
class Comparison:
    """kloop against the best peer in one measurement; below 1 kloop is better."""

    what: str
    unit: str
    kloop: float
    peer: str
    peer_value: float
    # kloop / peer, or, where more is better, peer / kloop.
    ratio: Spread
    # The ratio of a second kloop to the first, in the same run.
    noise: Spread | None = None


@dataclass(frozen=True)
class Goal:
    """What the project wants a figure to be, and what it is."""

    what: str
    figure: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether it is reached, to the two digits that a figure is good for."""
        figure = round(self.figure, 2)
        return figure >= self.limit if self.at_least else figure <= self.limit


@dataclass(frozen=True)
class Section:
    """What one cell has to say."""

    tables: list[Table]
    plots: list[Plot] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
