"""The table: what each size takes, what of it was measured, and which limit it meets first."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psutil

from pytest_kvcache.baselines.requests_table import MAX_ROWS
from pytest_kvcache.scaling import boots, senders, tables
from pytest_kvcache.scaling.point import Point

#: A load node is used to this share, so that sends are not late (docs/client.md).
_USED = 0.5
#: Above these a size is said to have come to a limit.
_PAGE_BYTES, _SCRAPE_S, _USED_MEMORY = 3_000_000, 10.0, 0.8
Say = Callable[[str], None]


@dataclass(frozen=True)
class Assumed:
    """What this machine cannot measure.

    Args:
        boot_s: Until the servers of a boot are ready (s).
        prefill_s: A prompt of a user that is sent before the clock starts takes so long (s).
        spread: How figures of boots differ.
        family: Declared gates.
        users_apart: So many users of one load have texts of their own on one boot.
        processors: Of a load node.
        memory_bytes: Of the coordinator.
    """

    boot_s: float = 180.0
    prefill_s: float = 0.4
    spread: boots.Spread = field(default_factory=boots.Spread)
    family: int = 24
    users_apart: int = 100_000
    processors: int = field(default_factory=lambda: os.cpu_count() or 1)
    memory_bytes: int = field(default_factory=lambda: psutil.virtual_memory().total)


@dataclass(frozen=True)
class Effort:
    """How much is measured, and not scaled.

    Args:
        rows: The largest table that is written.
        script_bytes: The largest script that is made.
        rate: Requests a second that are sent to learn what one costs.
        seconds: For how long.
        sessions: Sessions that are played for the boots of a verdict.
    """

    rows: int = 100_000
    script_bytes: int = 2 << 30
    rate: float = 40.0
    seconds: float = 8.0
    sessions: int = 400


@dataclass(frozen=True)
class Grown:
    """What a size takes.

    Args:
        point: The size.
        cells: A text by column; one that begins with ~ is scaled from a smaller measurement.
        stops: What the size is too large for; empty where nothing is.
    """

    point: Point
    cells: dict[str, str]
    stops: tuple[str, ...]


def grow(points: Sequence[Point], *, assumed: Assumed, effort: Effort, say: Say) -> tuple[list[Grown], list[str]]:
    """Return what each size takes, and lines that say how that is known.

    Args:
        points: The sizes.
        assumed: What cannot be measured here.
        effort: How much is measured.
        say: Prints a line of progress.
    """
    say("measuring: what one request costs the client")
    sent = senders.client_cost(points[0], rate=effort.rate, seconds=effort.seconds)
    request_cpu_s = sent.cpu_s / max(1, sent.found.requests)
    say("measuring: clock of a load node of this machine")
    clock = senders.clock_cost()
    lines = [
        f"client: {1e3 * request_cpu_s:.1f} ms of processor time a request of {points[0].answer_tokens} tokens, by "
        f"{sent.found.requests} requests of the real load process at {effort.rate:g}/s against a stub server "
        f"({sent.found.failed} failed, sent late by {1e3 * sent.found.late_p99_s:.1f} ms at p99)",
        f"clock: 20 comparisons of a real agent on this machine, whose true offset is 0: off by at most "
        f"{1e3 * clock.worst_error_s:.3f} ms, uncertainty at most {1e3 * clock.worst_uncertainty_s:.3f} ms, "
        f"{1e3 * clock.each_s:.1f} ms each",
        f"rows, Parquet and report: synthetic requests (their values are made up), written by the code of a run, up to "
        f"{effort.rows} rows; above that scaled (~)",
        "counters: pages of a stub server in the size of a vLLM's, read by the code of a run",
        f"boots: {effort.sessions} sessions played by the procedure that decides, nothing changed, {assumed.family} "
        f"gates, boots spread by {assumed.spread.boot:.0%}, requests by {assumed.spread.request:g} (log scale)",
        f"minutes: of one tier at one context, with boots of {assumed.boot_s:g} s (assumed) and "
        f"{assumed.prefill_s:g} s for each prompt of the priming (assumed)",
    ]
    found = []
    for point in points:
        say(f"measuring: {point.servers} servers, {point.users} users")
        found.append(_grown(point, request_cpu_s, clock, assumed, effort))
    return found, lines


def _grown(point: Point, request_cpu_s: float, clock: senders.ClockCost, assumed: Assumed, effort: Effort) -> Grown:
    processors = point.qps * request_cpu_s
    nodes = max(1, math.ceil(processors / (_USED * assumed.processors)))
    processes = max(nodes, point.workload().wanted_workers(point.requests * point.answer_tokens))
    script, script_told = _script(point, effort)
    count = min(point.requests, effort.rows)
    rows, report = tables.rows_cost(point, count), tables.report_cost(point, count)
    scale = point.requests / count
    scraped = tables.scrape_cost(point.servers)
    needed = boots.boots_needed(point, spread=assumed.spread, family=assumed.family, sessions=effort.sessions)
    priming_s = point.users * assumed.prefill_s
    load_s = script.seconds + priming_s + point.duration_s + 2 * scraped.read_s + scale * rows.found.saved_s
    minutes = needed.mean * (assumed.boot_s + load_s) / 60
    about = "~" if scale > 1 else ""
    row_memory = scale * max(rows.peak_bytes, report.peak_bytes)
    cells = {
        "servers": str(point.servers),
        "users": f"{point.users:,}",
        "requests/s": f"{point.qps:.3g}",
        "client processors": f"{processors:.2g}",
        "load processes": str(processes),
        "load nodes": str(nodes),
        "clock error ms": f"{1e3 * clock.worst_uncertainty_s:.3f}" if nodes > 1 else "-",
        "counters read": f"{scraped.read_s:.2f} s, {_size(scraped.page_bytes)}",
        "counters kept": _size(2 * scraped.kept_bytes),
        "script": script_told,
        "rows": f"{point.requests:,}",
        "Parquet": about + _size(scale * rows.found.file_bytes),
        "memory of rows": about + _size(row_memory),
        "report": f"{_size(report.found.page_bytes)} in {about}{scale * report.wall_s:.1f} s",
        "boots": f"{needed.mean:.2f}",
        "minutes": f"{minutes:.0f}",
    }
    return Grown(
        point,
        cells,
        tuple(
            _stops(
                point,
                assumed,
                nodes=nodes,
                script_bytes=script.memory_bytes,
                row_bytes=row_memory,
                scraped=scraped,
                report=report.found,
                priming_s=priming_s,
            )
        ),
    )


@dataclass(frozen=True)
class _Script:
    seconds: float
    memory_bytes: float


def _script(point: Point, effort: Effort) -> tuple[_Script, str]:
    """Return what making the script takes, and its text."""
    # A letter is a byte twice: in the text, and encoded. Words have about six.
    estimate = point.sessions * point.context_tokens * 12
    users = max(1, min(point.users, round(point.users * effort.script_bytes / estimate)))
    part = Point(
        point.servers, users, point.context_tokens, point.duration_s, point.every_s, point.rounds, point.answer_tokens
    )
    took = senders.script_cost(part)
    scale = point.requests / part.requests
    found = _Script(scale * took.wall_s, scale * took.peak_bytes)
    about = "~" if scale > 1 else ""
    return found, f"{about}{found.seconds:.1f} s, {_size(found.memory_bytes)}"


def _stops(
    point: Point,
    assumed: Assumed,
    *,
    nodes: int,
    script_bytes: float,
    row_bytes: float,
    scraped: tables.Scraped,
    report: tables.Report,
    priming_s: float,
) -> list[str]:
    memory = _USED_MEMORY * assumed.memory_bytes
    found = []
    if nodes > 1:
        found.append(f"one client machine of {assumed.processors} processors: {nodes} load nodes are needed")
    if script_bytes > memory:
        found.append(f"memory of the coordinator: the script takes {_size(script_bytes)}")
    if row_bytes > memory:
        found.append(f"memory of the coordinator: rows take {_size(row_bytes)}")
    if 6 * point.requests > MAX_ROWS:
        found.append(f"baselines: six boots have {6 * point.requests:,} requests, a baseline keeps {MAX_ROWS:,}")
    if point.sessions >= assumed.users_apart:
        found.append(f"users: {point.sessions:,} have texts in one load, contexts are {assumed.users_apart:,} apart")
    if scraped.read_s > _SCRAPE_S:
        found.append(f"counters: reading them takes {scraped.read_s:.0f} s")
    if report.page_bytes > _PAGE_BYTES:
        found.append(f"report: {_size(report.page_bytes)}, above {_size(_PAGE_BYTES)}")
    if priming_s > point.duration_s:
        found.append(
            f"priming: {priming_s / 60:.0f} min for one prompt after the other, the load itself "
            f"{point.duration_s / 60:.0f} min"
        )
    return found


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def markdown(grown: Sequence[Grown], lines: Sequence[str]) -> str:
    """Return table, limits and how they are known, as Markdown."""
    columns = list(grown[0].cells)
    lines_of = [columns, ["---"] * len(columns), *([each.cells[name] for name in columns] for each in grown)]
    table = ["| " + " | ".join(row) + " |" for row in lines_of]
    limits = [
        f"- {each.point.servers} servers, {each.point.users:,} users: {'; '.join(each.stops) or 'nothing stops it'}"
        for each in grown
    ]
    return "\n".join(
        [*table, "", "Where it stops:", "", *limits, "", "How this is known:", "", *(f"- {each}" for each in lines), ""]
    )


def terminal(grown: Sequence[Grown], lines: Sequence[str]) -> list[str]:
    """Return the same as lines for a terminal: a size is a column, so that they are not too long."""
    names = list(grown[0].cells)
    wide = max(map(len, names))
    widths = [max(len(each.cells[name]) for name in names) for each in grown]
    found = [
        "  ".join([f"{name:<{wide}}", *(f"{each.cells[name]:>{w}}" for each, w in zip(grown, widths, strict=True))])
        for name in names
    ]
    for each in grown:
        found += [f"{each.point.servers} servers, {each.point.users:,} users stop at {stop}" for stop in each.stops]
    return [*found, *lines]
