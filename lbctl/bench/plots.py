"""Plots of a run, as SVG and PNG. Needs matplotlib, which only `lbctl bench` does."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from lbctl.bench.records import FLOOR, ORDER, UNITS, About, Record
from lbctl.errors import LbError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["svg", "png"]

# Told apart by colour and by marker.
_COLOURS = dict(
    zip(
        ORDER,
        (
            "#888888",
            "#bcbd22",
            "#d62728",
            "#ff7f0e",
            "#9467bd",
            "#8c564b",
            "#1f77b4",
            "#e377c2",
            "#17becf",
            "#2ca02c",
            "#222222",
        ),
        strict=True,
    )
)
_MARKERS = dict(zip(ORDER, "x+sDv*op^Ph", strict=True))
_SIZE = (7.0, 4.2)  # inches


def available() -> str:
    """Why there can be no plots; empty if there can."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return "no plots: matplotlib is not installed (pip install 'lbctl[bench]')"
    return ""


def draw(records: Sequence[Record], about: About, form: Format) -> dict[str, bytes]:
    """Every plot there is data for, by name. LbError without matplotlib."""
    if reason := available():
        raise LbError(reason)
    import matplotlib

    matplotlib.use("agg")
    # Text stays text, and two drawings of the same data are the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "lbctl"})
    drawn: dict[str, bytes] = {}
    for name, plot in _PLOTS.items():
        figure = _figure()
        if plot(figure.gca(), records, about):
            drawn[name] = _encode(figure, form)
    return drawn


def _figure() -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=_SIZE, layout="constrained")


def _encode(figure: Figure, form: Format) -> bytes:
    out = io.BytesIO()
    metadata = {"Date": None} if form == "svg" else None
    figure.savefig(out, format=form, dpi=120, metadata=metadata)
    return out.getvalue()


def _over_services(
    measure: str, title: str, *, ratio: bool = False, log: bool = True
) -> Callable[[Axes, Sequence[Record], About], bool]:
    """A line per peer over the number of services."""

    def plot(axes: Axes, records: Sequence[Record], _about: About) -> bool:
        found = False
        for peer in ORDER:
            rows = sorted(
                (r for r in records if (r.peer, r.measure) == (peer, measure)),
                key=lambda record: record.services,
            )
            points = [(row.services, row.ratio_to_floor if ratio else row.p50) for row in rows]
            values = [(services, value) for services, value in points if value is not None]
            if not values or (measure == "roundtrip_added" and peer == FLOOR):
                continue
            found = True
            axes.plot(
                [services for services, _ in values],
                [value for _, value in values],
                label=peer,
                color=_COLOURS[peer],
                marker=_MARKERS[peer],
            )
        axes.set_xscale("log")
        if log:
            axes.set_yscale("log")
        axes.set_xlabel("services")
        axes.set_ylabel("ratio to a node without rules" if ratio else UNITS[measure])
        axes.set_title(title)
        _finish(axes)
        return found

    return plot


def _distribution(axes: Axes, _records: Sequence[Record], about: About) -> bool:
    """Connect latency at the largest number of services that most peers were measured at."""
    if not about.distributions:
        return False
    peers = Counter(found.services for found in about.distributions)
    largest = max(peers, key=lambda services: (peers[services], services))
    for found in sorted(about.distributions, key=lambda d: ORDER.index(d.peer)):
        if found.services == largest:
            values = found.percentiles[:100]  # the maximum is one connection
            axes.plot(values, range(len(values)), label=found.peer, color=_COLOURS[found.peer])
    axes.set_xscale("log")
    axes.set_xlabel("us")
    axes.set_ylabel("% of connections that took no longer")
    axes.set_title(f"connect() at {largest:,} services")
    _finish(axes)
    return True


def _finish(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(True, which="major", alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


_PLOTS: dict[str, Callable[[Axes, Sequence[Record], About], bool]] = {
    "connect_latency": _over_services(
        "connect_latency", "Median time of connect(), against the floor", ratio=True
    ),
    "connect_distribution": _distribution,
    "connection_rate": _over_services("connection_rate", "Connections per second", log=False),
    "roundtrip_added": _over_services(
        "roundtrip_added", "Added to a round trip of one byte", log=False
    ),
    "cpu_per_packet": _over_services("cpu_per_packet", "CPU time per packet", log=False),
    "request_rate": _over_services("request_rate", "HTTP requests per second (wrk)", log=False),
    "throughput": _over_services("throughput", "Throughput of one connection (iperf3)", log=False),
    "change_time": _over_services("change_time", "A changed endpoint, until it is reached"),
    "load_time": _over_services("load_time", "From nothing to all services programmed"),
    "kernel_memory": _over_services("kernel_memory", "Kernel memory of rules or maps"),
    "agent_memory": _over_services("agent_memory", "Resident memory of the agent", log=False),
}
