"""Reports of a run: on the terminal, as one HTML file with everything in it, and as Markdown."""

from __future__ import annotations

import html
from pathlib import Path

from lbctl.bench import plots, tables
from lbctl.bench.records import Results
from lbctl.bench.tables import Table
from lbctl.errors import UsageError

SUFFIXES = (".html", ".md")

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em;
       color: #222; }
table { border-collapse: collapse; margin: 0.5em 0 1.5em; }
caption { text-align: left; font-weight: 600; padding: 0.4em 0; }
th, td { border-bottom: 1px solid #ddd; padding: 0.25em 0.9em 0.25em 0; text-align: right; }
th:first-child, td:first-child, table.text td, table.text th { text-align: left; }
tr.ours { background: #eef5fb; }
svg { max-width: 100%; height: auto; }
"""


def check_path(path: Path) -> None:
    """UsageError for a name whose suffix means nothing here, before anything is measured."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--report: {path} ends in neither {' nor '.join(SUFFIXES)}")


def show(results: Results) -> None:
    """Everything on stdout."""
    from rich.table import Table as RichTable

    from lbctl.printing import print_rich

    for table in _all_tables(results):
        shown = RichTable(box=None, padding=(0, 2, 0, 0))
        text = table.title == tables.NOT_MEASURED
        for index, head in enumerate(table.head):
            shown.add_column(head, justify="left" if text or not index else "right")
        for row in table.rows:
            shown.add_row(*row)
        print_rich(table.title)
        print_rich(shown)
        print_rich("")
    for name, value in results.about.machine.items():
        print_rich(f"{name:18} {value}")
    print_rich("")
    for sentence in [*results.about.failures, *tables.verdicts(results.records)]:
        print_rich(sentence)


def write(results: Results, path: Path) -> None:
    """A report in the format that the suffix names. UsageError, OSError."""
    check_path(path)
    text = _html(results) if path.suffix == ".html" else _markdown(results)
    path.write_text(text)


def write_plots(results: Results, directory: Path) -> list[Path]:
    """All plots as SVG and PNG. LbError without matplotlib."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    forms: tuple[plots.Format, ...] = ("svg", "png")
    for form in forms:
        for name, image in plots.draw(results.records, results.about, form).items():
            path = directory / f"{name}.{form}"
            path.write_bytes(image)
            written.append(path)
    return written


def _all_tables(results: Results) -> list[Table]:
    missing = tables.of_missing(results.about)
    found = tables.of_measures(results.records, results.about)
    found += tables.of_packets(results.about)
    return [*found, missing] if missing else found


def _html(results: Results) -> str:
    about = results.about
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>lbctl bench</title><style>{_STYLE}</style>",
        "<h1>What a service costs on this machine</h1>",
        _html_list("Where we lose", [*about.failures, *tables.verdicts(results.records)]),
    ]
    reason = plots.available()
    drawn = {} if reason else plots.draw(results.records, about, "svg")
    if reason:
        parts.append(f"<p>{html.escape(reason)}</p>")
    measures = {table.title.partition(":")[0]: table for table in _all_tables(results)}
    for name, table in measures.items():
        parts.append(_html_table(table))
        parts += [_svg(image) for plot, image in drawn.items() if plot == name]
        if name == "connect_latency" and "connect_distribution" in drawn:
            parts.append(_svg(drawn["connect_distribution"]))
    parts.append(_html_list("Machine", [f"{k}: {v}" for k, v in about.machine.items()]))
    parts.append(_html_list("Method", about.method))
    return "\n".join(parts) + "\n"


def _svg(image: bytes) -> str:
    """The drawing without the XML prologue, which an HTML page may not repeat."""
    text = image.decode()
    return "<figure>" + text[text.index("<svg") :] + "</figure>"


def _html_list(title: str, sentences: list[str]) -> str:
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return f"<h2>{html.escape(title)}</h2><ul>{items}</ul>"


def _html_table(table: Table) -> str:
    kind = " class=text" if table.title == tables.NOT_MEASURED else ""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in table.head)
    rows = ""
    for row in table.rows:
        ours = " class=ours" if row[0].startswith(tables.OURS) else ""
        rows += f"<tr{ours}>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>"
    return (
        f"<table{kind}><caption>{html.escape(table.title)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _markdown(results: Results) -> str:
    """Tables and lists, for a page that says more; plots are files beside it."""
    about = results.about
    parts = [tables.markdown(table) for table in _all_tables(results)]
    parts += ["**Where we lose**\n", _items([*about.failures, *tables.verdicts(results.records)])]
    parts += ["**Machine**\n", _items([f"{k}: {v}" for k, v in about.machine.items()])]
    parts += ["**Method**\n", _items(about.method)]
    return "\n".join(parts)


def _items(sentences: list[str]) -> str:
    return "".join(f"- {sentence}\n" for sentence in sentences)
