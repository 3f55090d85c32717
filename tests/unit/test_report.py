"""Chart and table of runs: from the files that they left, of valid boots only, and never of unlike runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from pytest_kvcache.cli import main
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.report import chart, compared, series

SPEEDS = {"gpu": (3000.0, 1000.0), "cpu": (3100.0, 2000.0), "pnfs": (3100.0, 3012.0)}


def left(run: Path, tier: str, context: int, speed: float, *, boot: str = "boot-1", **more: Any) -> Path:
    """Write what a boot of a tier leaves at a context length; return its run.json."""
    keys = {"hardware.gpus": "none", "hardware.cores": "2", "hardware.cpu": "X", "serving.model": "m"}
    keys |= {"workload.context_tokens": str(context), "workload.users": "3", "workload.qps": "0.8"}
    facts = {
        "label": "pnfs (stand-in: ext4)" if tier == "pnfs" else tier,
        "comparability": keys | more.pop("keys", {}),
        "faults": more.pop("faults", []),
        "estimates": {"tokens_per_s": speed, "ttft_mean_s": 1000 / speed, "decode_tokens_per_s": 100.0},
        "load": {"started_at": {"gpu": 1.0, "cpu": 2.0, "pnfs": 3.0}[tier]},
    }
    path = run / tier / boot / f"context-{context}" / "run.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(facts))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three tiers at two context lengths."""
    folder = tmp_path / "runs" / "1"
    for tier, speeds in SPEEDS.items():
        for context, speed in zip((1000, 9000), speeds, strict=True):
            left(folder, tier, context, speed)
    return folder


def test_the_table_is_the_article_s(run: Path) -> None:
    """The most that a tier gained over GPU only and over GPU + CPU, and at which length; TTFT gains as it falls."""
    table = series.means(series.read([run]))
    assert table["label"].unique().tolist() == ["gpu", "cpu", "pnfs (stand-in: ext4)"]
    rows = series.read([run])
    gained = compared.best_table(compared.changes(rows, against="gpu")).iloc[-1]
    assert gained.tolist() == ["pnfs (stand-in: ext4)", "+201% (at 9000)", "-67% (at 9000)", "+0% (at 1000)"]
    over_cpu = compared.best_table(compared.changes(rows, against="cpu"))
    assert over_cpu.set_index("tier")["processing speed"].iloc[-1] == "+51% (at 9000)"
    assert compared.changes(rows, against="nothing") == []
    assert [text.partition("\n")[0] for text in compared.best_tables(rows)] == [
        "at best, against gpu:",
        "at best, against cpu:",
    ]


def test_runs_of_one_token_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Decode throughput that no boot has, or not every tier, is "-" in tables; the chart is drawn of the rest."""
    for tiers in (("gpu", "cpu", "pnfs"), ("gpu", "pnfs")):
        folder = tmp_path / str(len(tiers))
        for tier, speeds in SPEEDS.items():
            path = left(folder, tier, 1000, speeds[0])
            facts = json.loads(path.read_text())
            if tier in tiers:
                del facts["estimates"]["decode_tokens_per_s"]
            path.write_text(json.dumps(facts))
        assert main(["report", str(folder), "--output", str(tmp_path / "x.svg")]) == 0
        output = capsys.readouterr().out
        gpu = next(line for line in output.splitlines() if line.split()[:2] == ["gpu", "1000"])
        assert gpu.split()[-2:] == ["-", "1"]
        assert "nan" not in output.lower()


def test_points_are_means_of_valid_boots(run: Path) -> None:
    """A point is the geometric mean of its boots; one that is invalid is in no figure."""
    left(run, "gpu", 1000, 4000.0, boot="boot-2")
    left(run, "gpu", 1000, 9999.0, boot="boot-3", faults=["the tier was off"])
    first = series.means(series.read([run])).iloc[0]
    assert (round(first["tokens_per_s"]), first["boots"]) == (3464, 2)


def test_sides_of_an_a_b_are_lines_of_their_own(tmp_path: Path) -> None:
    """Boots of the two engines are told apart by their folders."""
    left(tmp_path, "gpu", 1000, 3000.0, boot="aboot-1")
    left(tmp_path, "gpu", 1000, 2000.0, boot="bboot-1")
    assert series.means(series.read([tmp_path]))["label"].tolist() == ["gpu (A)", "gpu (B)"]


@pytest.mark.parametrize("key", ["serving.model", "hardware.cpu", "workload.qps"])
def test_unlike_runs_make_no_chart(run: Path, tmp_path: Path, key: str) -> None:
    """Another model, machine or workload is refused with the key and both files."""
    other = left(tmp_path / "runs" / "2", "gpu", 1000, 1.0, keys={key: "other"})
    with pytest.raises(ConfigError, match=rf"is another {key} \(other\) than .*run\.json") as caught:
        series.read([run, tmp_path / "runs" / "2"])
    assert caught.value.where == str(other)


DAMAGED = [
    "{",
    "",
    "\0\0\0",
    "[]",
    "null",
    '"text"',
    "{}",
    '{"comparability": {}, "load": 1}',
    '{"label": 1',
    '{"label": [], "comparability": []}',
    '{"label": "x", "comparability": {"hardware.gpus": null}}',
    "[" * 100_000,
]
#: Ways in which a key of a whole file can be wrong: its path, and what stands there.
WRONG = [
    (("estimates",), []),
    (("estimates",), "x"),
    (("estimates", "tokens_per_s"), "fast"),
    (("estimates", "tokens_per_s"), [1.0]),
    (("estimates", "ttft_mean_s"), math.inf),
    (("estimates", "decode_tokens_per_s"), math.nan),
    (("load", "started_at"), 1e308),
    (("load", "started_at"), -1.0),
    (("faults",), "none"),
    (("faults",), [1]),
    (("load",), []),
    (("load", "started_at"), "yesterday"),
    (("label",), None),
    (("comparability", "workload.context_tokens"), "many"),
    (("comparability", "workload.users"), 3),
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_left_out_and_named(run: Path, content: str) -> None:
    """A run.json that is none, or half of one, takes its own load out of the table only."""
    path = run / "cpu" / "boot-1" / "context-1000" / "run.json"
    path.write_text(content)
    rows = series.read([run])
    assert [f"{path.parent}: its run.json is damaged" in line for line in rows.attrs["left_out"]] == [True]
    assert "\n" not in rows.attrs["left_out"][0]
    assert len(rows) == 5


@pytest.mark.parametrize(("keys", "value"), WRONG)
def test_a_file_with_a_wrong_value_is_left_out_and_named(run: Path, keys: tuple[str, ...], value: Any) -> None:
    """Values of another type are found when the file is read, and not by what computes with them."""
    path = run / "cpu" / "boot-1" / "context-1000" / "run.json"
    facts = json.loads(path.read_text())
    inner = facts
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(facts))
    rows = series.read([run])
    assert [str(path.parent) in line for line in rows.attrs["left_out"]] == [True]
    assert len(series.means(rows)) == 5


def test_a_file_that_was_cut_anywhere_is_left_out(run: Path) -> None:
    """However much of it reached the disk, the other loads are drawn."""
    path = run / "cpu" / "boot-1" / "context-1000" / "run.json"
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        rows = series.read([run])
        assert (len(rows), len(rows.attrs["left_out"])) == (5, 1)


def test_a_damaged_file_is_not_what_others_are_held_against(run: Path, tmp_path: Path) -> None:
    """Where runs are unlike, the error names a file that was read, not one that was left out."""
    next(iter(sorted(run.rglob("run.json")))).write_text("{")
    other = left(tmp_path / "runs" / "2", "gpu", 1000, 1.0, keys={"serving.model": "other"})
    with pytest.raises(ConfigError, match=r"than .*context-9000.run\.json \(m\)") as caught:
        series.read([run, other.parents[3]])
    assert caught.value.where == str(other)


def test_a_folder_that_is_named_twice_counts_once(run: Path) -> None:
    """A run and the folder that it is in give each boot one row."""
    assert len(series.read([run, run.parent])) == 6


def texts(path: Path) -> list[str]:
    """Return the words in an SVG."""
    return [text for e in ElementTree.parse(path).iter() if (text := (e.text or "").strip())]  # noqa: S314 - our own


def test_the_chart_has_a_line_a_tier_and_says_what_it_leaves_out(run: Path, tmp_path: Path) -> None:
    """Labels with what stood in for what, contexts on the axis, machine and invalid boots below; the same each time."""
    left(run, "cpu", 20000, 1.0, faults=["no request was sent"])
    rows = series.read([run])
    words = texts(chart.draw(rows, tmp_path / "c.svg"))
    assert {"gpu", "cpu", "pnfs (stand-in: ext4)", "1000", "9000", "m: 3 users, 0.8 requests/s"} <= set(words)
    assert "2 cores of X; boots a point: 1; not shown, invalid: cpu at 20000" in words
    again = chart.draw(rows, tmp_path / "again.svg")
    assert again.read_bytes() == (tmp_path / "c.svg").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.svg", "c.svg", "runs"]


def test_runs_without_a_valid_boot_still_have_a_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is empty and says why, in place of an error at the end of a session; the suffix may have capitals."""
    left(tmp_path / "r", "gpu", 1000, 1.0, faults=["no request was sent"])
    words = texts(chart.draw(series.read([tmp_path / "r"]), tmp_path / "c.svg"))
    assert any("not shown, invalid: gpu at 1000" in text for text in words)
    assert main(["report", str(tmp_path / "r"), "--output", str(tmp_path / "c.SVG")]) == 0
    assert texts(tmp_path / "c.SVG") == words
    assert capsys.readouterr().out.startswith("no figure may rest on any boot: all of them are invalid\n")


def test_the_command_takes_the_newest_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without arguments it reads the last run of this project, prints both tables, and writes the files asked for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".kvcache").mkdir()
    run.parent.rename(tmp_path / ".kvcache" / "runs")
    left(tmp_path / ".kvcache" / "runs" / "0", "gpu", 1000, 1.0)
    assert main(["report", "--output", "c.png"]) == 0
    out = capsys.readouterr().out
    assert "at best, against gpu:" in out
    assert "+201% (at 9000)" in out
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert main(["report", "--output", "c.csv"]) == 0
    assert len(pd.read_csv(tmp_path / "c.csv")) == 6


def test_a_session_that_was_interrupted_is_drawn(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was measured to its end is in table and chart; what was not is named, however it was cut short."""
    monkeypatch.chdir(run.parent.parent)
    left(run, "gpu", 20000, 5.0).write_text('{"label": "gpu", "compara')
    cut = left(run, "cpu", 20000, 5.0)
    facts = json.loads(cut.read_text())
    del facts["estimates"], facts["faults"]
    cut.write_text(json.dumps(facts))
    begun = left(run, "pnfs", 20000, 5.0)
    begun.rename(begun.with_name("plan.json"))
    left(run, "gpu", 30000, 5.0).write_text("")
    (run / "s3" / "boot-1" / "logs").mkdir(parents=True)
    (run / "s3" / "boot-2" / "context-1000").mkdir(parents=True)
    assert main(["report", str(run), "--format", "svg"]) == 0
    out = capsys.readouterr().out
    assert "+201% (at 9000)" in out
    lines = [line for line in out.splitlines() if line.startswith("left out: ")]
    assert sorted(line.split("/runs/1/")[1].split(":")[0] for line in lines) == [
        "cpu/boot-1/context-20000",
        "gpu/boot-1/context-20000",
        "gpu/boot-1/context-30000",
        "pnfs/boot-1/context-20000",
        "s3/boot-1",
        "s3/boot-2/context-1000",
    ]
    assert sum("it was cut short" in line for line in lines) == 3
    assert sum("it ended before its first load" in line for line in lines) == 1


def test_the_newest_run_with_figures_is_drawn_and_newer_ones_are_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A session that was interrupted before its first load, or whose files are damaged, hides no other."""
    monkeypatch.chdir(run.parent.parent)
    (run.parent / "2" / "gpu" / "boot-1" / "logs").mkdir(parents=True)
    left(run.parent / "3", "gpu", 1000, 1.0).write_text("{")
    assert main(["report", "--kv-runs", str(run.parent), "--format", "svg"]) == 0
    out = capsys.readouterr().out
    assert "+201% (at 9000)" in out
    lines = [line for line in out.splitlines() if line.startswith("left out: ")]
    assert [line.split("/runs/")[1][:2] for line in lines] == ["3:", "2:"]


def test_a_session_of_which_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where no boot came to its end, the error names the first that did not."""
    left(tmp_path / "r", "gpu", 1000, 1.0).write_text("{")
    assert main(["report", str(tmp_path / "r")]) == 1
    assert "no boot was measured to its end there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "no run is there"),
        (["nowhere"], "no boot was measured there"),
        (["runs", "--output", "c.xyz"], "its suffix is no format"),
        (["runs", "--output", "no/such/folder.svg"], "folder.svg: cannot be written: No such file or directory\n"),
    ],
)
def test_the_command_says_what_is_wrong(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    """Nothing to draw, or no way to: one line with the cause, exit code 1, nothing left."""
    monkeypatch.chdir(run.parent.parent)
    assert main(["report", *argv]) == 1
    assert said in capsys.readouterr().err
    assert [path.name for path in run.parent.parent.iterdir()] == ["runs"]
