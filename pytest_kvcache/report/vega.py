"""Vega-Lite: the looks that all charts have, charts as files, and the JavaScript that draws them in a browser.

The same specification is drawn as SVG, PNG or PDF without a browser, and by Vega in the HTML report. The package that
does both is loaded for the first chart only: it is a JavaScript engine, and starting it takes a second.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pytest_kvcache.errors import ConfigError
from pytest_kvcache.home import home
from pytest_kvcache.runs.files import replace_whole, write_text

Spec = dict[str, Any]

#: Colours of lines, at least 3:1 against both a white and a dark page (WCAG 2.2, 1.4.11).
PALETTE = ("#2f80ed", "#d97706", "#0d9488", "#e0447c", "#8b5cf6", "#7c8a1d", "#b45309", "#64748b")
#: Colours of where KV came from: the same in all charts.
SOURCES = {
    "computed": "#e0447c",
    "device": "#2f80ed",
    "L1": "#0d9488",
    "L2": "#d97706",
    "L1+L2": "#7c8a1d",
    "cached": "#2f80ed",
    "elsewhere": "#8b5cf6",
    "lost": "#64748b",
    "failed": "#64748b",
}
SHAPES = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "stroke")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 4], [10, 4])
#: What charts are drawn with on paper, and in a browser, where the page's style decides.
PAPER = {"text": "#1b1f24", "faint": "#57606a", "grid": "#e3e6ea"}
PAGE = {"text": "var(--text)", "faint": "var(--faint)", "grid": "var(--grid)"}
SUFFIXES = ("svg", "png", "pdf")
#: The y channel of a cumulative distribution (ECDF).
SHARE_WITHIN: Spec = {
    "field": "share",
    "type": "quantitative",
    "title": "share of answers within",
    "axis": {"format": ".0%"},
}
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"


def config(colours: Mapping[str, str]) -> Spec:
    """Return the looks of a chart.

    Args:
        colours: `PAPER` or `PAGE`.
    """
    text, faint, grid = colours["text"], colours["faint"], colours["grid"]
    named = {"labelColor": faint, "titleColor": text, "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": 500}
    return {
        "font": "system-ui, -apple-system, Segoe UI, Roboto, DejaVu Sans, Arial, sans-serif",
        "background": "white" if colours is PAPER else None,
        "view": {"stroke": None},
        "axis": named | {"gridColor": grid, "domainColor": faint, "tickColor": faint, "titlePadding": 8},
        "legend": named | {"orient": "top", "labelLimit": 320, "symbolStrokeWidth": 2, "symbolOpacity": 1},
        "title": {"color": text, "subtitleColor": faint, "fontSize": 14, "subtitleFontSize": 11, "anchor": "start"},
        "header": {"labelColor": text, "titleColor": faint},
        "text": {"color": text},
        "rule": {"color": faint},
    }


def chart(body: Mapping[str, Any], *, colours: Mapping[str, str]) -> Spec:
    """Return a whole specification.

    Args:
        body: Data, marks and encodings.
        colours: `PAPER` or `PAGE`.
    """
    return {"$schema": _SCHEMA, "config": config(colours), **body}


def looks(labels: Sequence[str], *, title: str = "tier") -> dict[str, Spec]:
    """Return encodings by which each label has a colour, a shape and a dash of its own, in the same order everywhere.

    Args:
        labels: All that may occur, in order.
        title: Of the legend.
    """

    def scale(values: Sequence[Any]) -> Spec:
        return {"domain": list(labels), "range": [values[at % len(values)] for at in range(len(labels))]}

    shared = {"field": "label", "type": "nominal", "title": title}
    return {
        "color": shared | {"scale": scale(PALETTE)},
        "shape": shared | {"scale": scale(SHAPES)},
        "strokeDash": shared | {"scale": scale(DASHES)},
    }


def draw(spec: Spec, path: Path) -> Path:
    """Draw a chart into a file and return it; the same chart gives the same file.

    Args:
        spec: Of `chart`.
        path: Its suffix says what it is: .svg, .png or .pdf.

    Raises:
        OSError: It could not be written.
        ValueError: The suffix is none that can be drawn, or the chart cannot be drawn.
    """
    kind = path.suffix.removeprefix(".").lower()
    if kind not in SUFFIXES:
        raise ValueError(f"{path.name}: a chart is .svg, .png or .pdf")
    content = _drawn(spec, kind)
    replace_whole(path, lambda partial: partial.write_bytes(content))
    return path


def svg(spec: Spec) -> str:
    """Return a chart as SVG."""
    return _drawn(spec, "svg").decode("utf-8")


def _drawn(spec: Spec, kind: str) -> bytes:
    # A second to start, and not needed before the first chart.
    import vl_convert  # noqa: PLC0415

    if kind == "svg":
        return vl_convert.vegalite_to_svg(spec).encode("utf-8")
    return vl_convert.vegalite_to_pdf(spec) if kind == "pdf" else vl_convert.vegalite_to_png(spec, scale=2)


def javascript() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script (0.9 MB) for an HTML page.

    It is made once for each version, in some seconds, and kept in the plugin's folder.

    Raises:
        ConfigError: The plugin's folder cannot be written.
    """
    import vl_convert  # noqa: PLC0415

    path = home() / "javascript" / f"vega-{version('vl-convert-python')}.js"
    if path.exists():
        return path.read_text(encoding="utf-8")
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, script)
    except OSError as error:
        raise ConfigError(
            f"cannot be written: {error.strerror}", where=str(path), todo="set PYTEST_KVCACHE_HOME to a folder"
        ) from None
    return script


def json_for_html(data: object) -> str:
    r"""Return JSON that may stand in a `<script>` element: ASCII, with `<`, `>` and `&` escaped (`\u003c`)."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
