"""Pictures for docs/, of what a lab really showed: the dashboard's panels, and `lbctl top`.

With LBCTL_PICTURES the tests that draw them leave them in that directory:
LBCTL_PICTURES=docs/observability ./dev test tests/lab -k picture
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.terminal_theme import MONOKAI

_VARIABLE = "LBCTL_PICTURES"
_COLUMNS = 3
_COLOURS = 64  # lines on white need no more, and a third of the bytes
_UNITS = {"s": "seconds", "bytes": "bytes", "Bps": "bytes/s", "percentunit": "share"}
_FONT = re.compile(r"@font-face \{.*?\}", re.DOTALL)

Point = tuple[float, str]
Series = Mapping[str, Any]


def wanted() -> bool:
    """Whether somebody wants them, which may take a while."""
    return bool(os.environ.get(_VARIABLE))


def directory(otherwise: Path) -> Path:
    """Where they go."""
    return Path(os.environ.get(_VARIABLE) or otherwise).resolve()


def draw_panels(
    panels: Sequence[Mapping[str, Any]],
    values: Callable[[str], Sequence[Series]],
    path: Path,
) -> None:
    """Panels of a dashboard, each with all its queries; `values` of a query are series as
    Prometheus has them."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    rows = -(-len(panels) // _COLUMNS)
    figure, places = pyplot.subplots(
        rows, _COLUMNS, figsize=(13, 2.6 * rows), squeeze=False, layout="constrained"
    )
    for panel, place in zip(panels, places.flat, strict=False):
        place.set_title(panel["title"], fontsize=10, loc="left")
        unit = panel["fieldConfig"]["defaults"].get("unit", "")
        place.set_ylabel(_UNITS.get(unit, ""), fontsize=8)
        drawn = [
            (series, target.get("legendFormat", ""))
            for target in panel["targets"]
            for series in values(target["expr"])
        ]
        # What was nothing all the time would only fill the legend.
        something = [(series, legend) for series, legend in drawn if any(_numbers(series))]
        for series, legend in something or drawn:
            _draw(place, series, legend)
        highest = max((max(_numbers(series)) for series, _ in something), default=1.0)
        place.set_ylim(0, 1.1 * highest)  # a line that is level would be hidden by the frame
        place.margins(x=0)
        place.tick_params(labelsize=7)
        place.grid(alpha=0.3)
        place.legend(fontsize=6, loc="upper left", frameon=False)
    figure.supxlabel("seconds", fontsize=8)
    _write_small(figure, path)
    pyplot.close(figure)


def _numbers(series: Series) -> list[float]:
    return [float(value) for _, value in series["values"]]


def _draw(place: Any, series: Series, legend: str) -> None:
    points: Sequence[Point] = series["values"]
    start = points[0][0]
    label = re.sub(r"\{\{(\w+)\}\}", lambda m: series["metric"].get(m[1], ""), legend)
    place.plot(
        [moment - start for moment, _ in points],
        _numbers(series),
        label=label,
        linewidth=1,
    )


def _write_small(figure: Any, path: Path) -> None:
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=80)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(_COLOURS).save(path, optimize=True)


def draw_screen(shown: RenderableType, command: str, path: Path, width: int = 100) -> None:
    """What a command draws on a terminal. No font is fetched for it."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(shown)
    text = console.export_svg(title=command, theme=MONOKAI, unique_id="screen")
    path.write_text(_FONT.sub("", text))
