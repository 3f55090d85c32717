"""The reference article's chart: processing speed against context length, a line a tier; TTFT and decode beside it."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pandas as pd

from pytest_kvcache.report.series import FIGURES, means
from pytest_kvcache.runs.files import replace_whole

_INCHES = (13.5, 4.8)
_MARKERS = "osD^vPX*"


def draw(rows: pd.DataFrame, path: Path) -> Path:
    """Draw a panel a figure and return the file. Points are boots, lines go through their means.

    What cannot be drawn is written below: boots that are invalid, and the machine that all of it was measured on.

    Args:
        rows: Of `series.read`.
        path: Of the file; its suffix says what it is (.svg, .png, .pdf).

    Raises:
        OSError: It could not be written.
        ValueError: The suffix is none that can be drawn.
    """
    # A quarter of the time in which a session with perf tests starts, and not needed before the first chart.
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.ticker import FormatStrFormatter  # noqa: PLC0415

    table = means(rows)
    drawn = Figure(figsize=_INCHES, layout="constrained")
    panels = drawn.subplots(1, len(FIGURES))
    for panel, figure in zip(panels, FIGURES, strict=True):
        for at, label in enumerate(rows["label"].unique()):
            line = table[table["label"] == label]
            boots = rows[(rows["label"] == label) & (rows["faults"] == "")]
            look = {"color": f"C{at % 10}", "marker": _MARKERS[at % len(_MARKERS)]}
            panel.plot(line["context_tokens"], line[figure.key], label=label, linewidth=1.8, **look)
            panel.plot(boots["context_tokens"], boots[figure.key], linestyle="none", alpha=0.35, markersize=4, **look)
        panel.set_xlabel("user context (tokens)")
        panel.set_title(figure.label, fontsize="medium")
        panel.set_xticks(sorted(rows["context_tokens"].unique()))
        panel.grid(alpha=0.3)
        if figure.higher_is_better:
            panel.margins(y=0.1)
            panel.set_ylim(bottom=0)
        elif (table[figure.key] > 0).any():
            panel.set_yscale("log")
            for axis in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
                axis(FormatStrFormatter("%.3g"))
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    drawn.suptitle(f"{rows['model'].iloc[0]}: {rows['workload'].iloc[0]}")
    drawn.supxlabel(_below(rows, table), fontsize="x-small")
    kind = path.suffix.removeprefix(".")
    # Without a date, and with ids that follow from the content: the same runs give the same file.
    with mpl.rc_context({"svg.hashsalt": "pytest-kvcache", "svg.fonttype": "none"}):
        replace_whole(path, lambda partial: drawn.savefig(partial, format=kind, metadata=_undated(kind), dpi=150))
    return path


def _undated(kind: str) -> dict[str, None] | None:
    return {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)


def _below(rows: pd.DataFrame, table: pd.DataFrame) -> str:
    fewest, most = (int(table["boots"].min()), int(table["boots"].max())) if len(table) else (0, 0)
    boots = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    parts = [f"{rows['hardware'].iloc[0]}; boots a point: {boots}"]
    invalid = rows[rows["faults"] != ""]
    parts += [f"not shown, invalid: {row.label} at {row.context_tokens}" for row in invalid.itertuples()]
    return "\n".join(textwrap.wrap("; ".join(parts), 180))
