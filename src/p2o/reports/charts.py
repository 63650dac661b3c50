"""Tables and charts of a page."""

from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup


@dataclass(frozen=True)
class Table:
    """Rows under headings; the first cell of a row is its name."""

    headings: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Chart:
    """A figure by its number on the page, with its caption and the numbers that it shows."""

    number: int
    label: str
    numbers: Table
    height: int


class Charts:
    """The figures of a page, as JSON for plotly."""

    def __init__(self) -> None:
        self.figures: list[str] = []

    def add(self, figure: go.Figure, label: str, numbers: Table, height: int = 340) -> Chart:
        figure.update_layout(
            template="none",
            height=height,
            margin={"l": 52, "r": 12, "t": 12, "b": 46},
            legend={"orientation": "h", "y": -0.25},
            paper_bgcolor="rgba(0,0,0,0)",
            plot_bgcolor="rgba(0,0,0,0)",
        )
        self.figures.append(figure.to_json())
        return Chart(len(self.figures) - 1, label, numbers, height)

    def json(self) -> Markup:
        """JSON for a <script> element; `</` is escaped."""
        return Markup(f"[{','.join(self.figures)}]".replace("</", "<\\/"))
