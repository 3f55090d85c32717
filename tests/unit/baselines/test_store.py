"""Baseline files of schema 3: round trips, damage, hostility, and writing all or nothing."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_kvcache.baselines import requests_table, store, update
from pytest_kvcache.baselines.store import Write
from pytest_kvcache.baselines.update import levels
from pytest_kvcache.errors import BaselineError
from pytest_kvcache.verdict.cells import Cell, RequestsFile, StoredCell, parse, requests_path
from pytest_kvcache.verdict.metrics import DEFAULT_METRICS
from pytest_kvcache.verdict.procedure import decide
from tests.unit.verdict.make import CELL, HASH, KEYS, boot, evidence, requests, sibling, stored

ROWS = [requests(noise=0.05, seed=n) for n in range(3)]
PACKED = requests_table.pack(ROWS)
COUNT = sum(map(len, ROWS))
TEXT = stored().text()
#: One of its figures.
SOME = TEXT.split('"tokens_per_s": ')[1].split("\n")[0]


def recorded(cell: Cell = CELL, *, old: StoredCell | None = None, worse: float = 0.0) -> Write:
    """Return the write that three boots make."""
    return update.record(
        cell,
        [(boot(worse + 0.01 * n), rows) for n, rows in enumerate(ROWS)],
        label="pnfs",
        run_id="r1",
        recorded="2026-11-24",
        comparability=KEYS,
        versions={"vllm": "2"},
        workload=HASH,
        round_s=6.0,
        old=old,
    )


def tree(root: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def unpacked(data: bytes, rows: int) -> pd.DataFrame:
    """Unpack requests whose digest is right."""
    return requests_table.unpack(data, RequestsFile(sha256=hashlib.sha256(data).hexdigest(), rows=rows), where="x")


def test_a_cell_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """What is written is read back, to six digits, with its requests beside it; keys are sorted for a small diff."""
    (path,) = store.write_all(tmp_path, [recorded()])
    assert path == tmp_path / "p" / "m" / "pnfs" / "context-1000.json"
    back = store.read(tmp_path, CELL)
    assert back is not None
    assert back.text() == recorded().new.text()
    assert back.boots[1].figures["ttft_geomean_s"] == pytest.approx(0.5 * 1.01005, rel=1e-5)
    assert path.read_text().splitlines()[1].startswith('  "boots"')
    assert sorted(p.name for p in path.parent.iterdir()) == ["context-1000.json", "context-1000.requests.parquet"]


def test_requests_come_back(tmp_path: Path) -> None:
    """Every request of every boot comes back, times to 10 µs, in few bytes."""
    store.write_all(tmp_path, [recorded()])
    back = store.read(tmp_path, CELL)
    assert back is not None
    frame = store.read_requests(tmp_path, back)
    for number, rows in enumerate(ROWS):
        mine = frame[frame["boot"] == number].reset_index(drop=True)
        for name in ("intended_start_s", "actual_start_s", "first_token_s", "last_token_s"):
            assert (mine[name] - rows[name]).abs().max() <= 0.5e-5 + 1e-12
        assert mine["prompt_tokens"].tolist() == rows["prompt_tokens"].tolist()
        assert mine["status"].tolist() == rows["status"].tolist()
    assert len(requests_table.pack([requests(users=15, rounds=20, noise=0.05, seed=n) for n in range(6)])) < 30 * 1800


def test_requests_without_times_come_back(tmp_path: Path) -> None:
    """Requests that were never sent keep their gaps."""
    rows = ROWS[0].copy()
    rows.loc[3, ["actual_start_s", "first_token_s", "last_token_s"]] = float("nan")
    rows.loc[3, "prompt_tokens"] = pd.NA
    packed = requests_table.pack([rows])
    back = requests_table.unpack(packed, requests_table.describe(packed, len(rows)), where="x")
    assert bool(back["first_token_s"].isna()[3])
    assert bool(back["prompt_tokens"].isna()[3])


def test_no_file_is_no_baseline(tmp_path: Path) -> None:
    """A cell without a file has no baseline; that is no error."""
    assert store.read(tmp_path, CELL) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        "\x00\x01",
        '"x"',
        '{"schema_version": 3}',
        '{"schema_version": "3"}',
        '{"schema_version": true}',
        "[" * 100_000,
        '{"a":' * 100_000,
        "1" * 100_000,
        '{"a": 1, "a": 2}',
        TEXT.replace('"schema_version": 3', '"schema_version": 3, "schema_version": 3'),
        TEXT.replace(SOME, "NaN"),
        TEXT.replace(SOME, "Infinity"),
        TEXT.replace(SOME, "1e999"),
        TEXT.replace(SOME, "-1"),
        TEXT.replace(SOME, "1e300"),
        TEXT.replace(SOME, "1e-300"),
        re.sub(r'"(\w+)": (?=[\d.]+,?\n)', r'"x\1": ', TEXT),
        TEXT.replace('"run-0"', "5"),
        TEXT.replace('"run-0"', '"\\ud800"'),
        TEXT.replace("2026-11-24", "yesterday"),
        TEXT.replace('"pnfs"', '"../../etc"'),
        TEXT.replace('"profile": "p"', '"profile": "/"'),
        TEXT.replace(HASH, HASH[:-1]),
        TEXT.replace('"label"', '"more": 1, "label"'),
        json.dumps({**json.loads(TEXT), "boots": []}),
        json.dumps({**json.loads(TEXT), "boots": json.loads(TEXT)["boots"] * 200}),
    ],
)
def test_a_damaged_file_is_a_clear_error(tmp_path: Path, text: str) -> None:
    """Whatever the file holds, the error names it and what to do, and is no traceback."""
    path = CELL.path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(BaselineError, match=r"context-1000\.json|cannot name a folder") as caught:
        store.read(tmp_path, CELL)
    assert caught.value.todo
    assert len(str(caught.value)) < 1000


@given(
    st.sampled_from([metric.key for metric in DEFAULT_METRICS]),
    st.floats(min_value=0, allow_infinity=False),
    st.integers(0, 5),
)
def test_figures_within_bounds_can_be_judged(key: str, value: float, number: int) -> None:
    """A figure that a file may hold never overflows in a verdict: what would is refused when the file is read."""
    data = json.loads(TEXT)
    data["boots"][number]["figures"][key] = value
    try:
        cell = parse(json.dumps(data).encode(), where="x")
    except BaselineError as error:
        assert key in error.what  # noqa: PT017 - either is right
        return
    decide(evidence(boot()), cell, family=12)
    levels([cell], family=12)


@pytest.mark.parametrize("damage", ["pointer", "gone", "cut", "another"])
def test_requests_are_read_with_their_cell(tmp_path: Path, damage: str) -> None:
    """A cell that is to be compared with is whole, its table of requests too, and the error says what it is instead."""
    path = requests_path(CELL.path(tmp_path))
    store.write_all(tmp_path, [recorded()])
    assert store.read_whole(tmp_path, CELL) == store.read(tmp_path, CELL)
    found = {
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        "cut": path.read_bytes()[:-1],
        "another": b"PAR1",
    }
    path.unlink()
    if damage in found:
        path.write_bytes(found[damage])
    with pytest.raises(BaselineError, match=r"context-1000\.requests") as caught:
        store.read_whole(tmp_path, CELL)
    assert ("git lfs pull" in caught.value.todo) is (damage == "pointer")
    CELL.path(tmp_path).write_bytes(found["pointer"])
    with pytest.raises(BaselineError, match="Git LFS pointer"):
        store.read(tmp_path, CELL)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    """Latin-1 is refused as what it is."""
    with pytest.raises(BaselineError, match="is not a baseline"):
        parse(b'{"label": "\xe9"}', where="x")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """A sparse file of a terabyte costs nothing."""
    path = CELL.path(tmp_path)
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BaselineError, match="longer than"):
        store.read(tmp_path, CELL)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A pipe, a folder and a link that leads out are refused, without waiting."""
    path = CELL.path(tmp_path / "b")
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(BaselineError, match="not a regular file"):
        store.read(tmp_path / "b", CELL)
    path.unlink()
    path.mkdir()
    with pytest.raises(BaselineError, match="not a regular file"):
        store.read(tmp_path / "b", CELL)
    path.rmdir()
    (tmp_path / "secret").write_text(TEXT)
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(BaselineError, match="leads out"):
        store.read(tmp_path / "b", CELL)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(BaselineError, match="cannot be read"):
        store.read(tmp_path / "b", CELL)


def test_a_file_in_the_wrong_place_is_refused(tmp_path: Path) -> None:
    """A baseline copied to another cell is not that cell's."""
    path = Cell("p", "m", "pnfs", 2000).path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(TEXT)
    with pytest.raises(BaselineError, match="not of this place"):
        store.read(tmp_path, Cell("p", "m", "pnfs", 2000))


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "/a", "a\x00", "é", "x" * 101, "-x", ".hidden"])
def test_names_that_lead_elsewhere_are_no_cells(name: str) -> None:
    """A cell's names are folder names, and cannot leave the baselines' folder."""
    with pytest.raises(BaselineError, match="cannot name a folder"):
        Cell(name, "m", "t", 1)


@pytest.mark.parametrize(
    ("version", "what"), [(1, r"baselines migrate(.|\n)*--update-baselines"), (99, "update pytest-kvcache")]
)
def test_other_schemas_are_refused_with_what_helps(version: int, what: str) -> None:
    """An older file is refused with the command that helps, a later one with the advice to update."""
    with pytest.raises(BaselineError, match=rf"schema {version}, this version reads 3(.|\n)*{what}"):
        parse(json.dumps({"schema_version": version}).encode(), where="x")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(st.binary(max_size=8), st.integers(0, len(TEXT)), st.integers(0, 40))
def test_random_damage_is_an_error_or_harmless(junk: bytes, at: int, length: int) -> None:
    """No damage to the text gives anything but a cell or a BaselineError."""
    data = TEXT.encode()
    with contextlib.suppress(BaselineError):
        parse(data[:at] + junk + data[at + length :], where="x")


@settings(max_examples=150, deadline=None)
@given(st.binary(min_size=1, max_size=8), st.integers(0, len(PACKED) - 1), st.integers(0, 40))
def test_random_damage_to_requests_is_an_error(junk: bytes, at: int, length: int) -> None:
    """Damage that comes with a matching digest is an error too, or a table of the same shape."""
    with contextlib.suppress(BaselineError):
        assert len(unpacked(PACKED[:at] + junk + PACKED[at + length :], COUNT)) == COUNT


def test_requests_that_were_cut_or_exchanged_are_refused(tmp_path: Path) -> None:
    """A truncated file, one of another baseline and none at all are refused."""
    store.write_all(tmp_path, [recorded()])
    back = store.read(tmp_path, CELL)
    assert back is not None
    path = requests_path(CELL.path(tmp_path))
    path.write_bytes(PACKED[:-10])
    with pytest.raises(BaselineError, match="SHA-256"):
        store.read_requests(tmp_path, back)
    path.unlink()
    with pytest.raises(BaselineError, match="not there"):
        store.read_requests(tmp_path, back)


def test_a_decompression_bomb_is_not_unpacked() -> None:
    """A small file that claims or holds a hundred million equal rows, or huge texts, is refused beforehand."""
    table = requests_table._SCHEMA.empty_table()
    many = {f.name: pa.nulls(3_000_000, f.type) for f in table.schema}
    for f in table.schema:
        if not f.nullable:
            many[f.name] = pa.repeat(pa.scalar("ok" if f.type == pa.string() else 1, f.type), 3_000_000)
    out = io.BytesIO()
    pq.write_table(pa.table(many, schema=table.schema), out, compression="zstd", store_schema=False)
    assert len(out.getvalue()) < 100_000
    for rows in (COUNT, 1_000_000):
        with pytest.raises(BaselineError, match="requests"):
            unpacked(out.getvalue(), rows)
    few = {name: column[:200] for name, column in many.items()}
    few["status"] = pa.array(["x" * 1_000_000] * 200)
    out = io.BytesIO()
    pq.write_table(
        pa.table(few, schema=table.schema), out, compression="zstd", use_dictionary=False, store_schema=False
    )
    assert len(out.getvalue()) < 200_000
    with pytest.raises(BaselineError, match="once decompressed"):
        unpacked(out.getvalue(), 200)


def test_another_table_is_no_table_of_requests() -> None:
    """Parquet with other columns is refused."""
    out = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), out)
    with pytest.raises(BaselineError, match="other columns"):
        unpacked(out.getvalue(), 1)


@pytest.mark.parametrize("fails_at", range(1, 11))
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_all_of_a_session_is_written_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int, error: BaseException
) -> None:
    """Whichever step fails, the files are those from before, to the byte, and no other is left."""
    other = Cell("p", "m", "s3", 1000)
    store.write_all(tmp_path, [recorded()])
    before = tree(tmp_path)
    calls = 0

    def failing(real: object) -> object:
        def call(*args: object, **more: object) -> object:
            nonlocal calls
            calls += 1
            if calls == fails_at:
                raise error
            return real(*args, **more)  # type: ignore[operator]

        return call

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", failing(os.fsync))
        patch.setattr(Path, "replace", failing(Path.replace))
        try:
            store.write_all(tmp_path, [recorded(worse=0.2), recorded(other)])
        except (BaselineError, KeyboardInterrupt):
            pass
        else:  # folders that cannot be synced are put up with
            assert fails_at > 8
            assert len(tree(tmp_path)) == 4
            return
    assert tree(tmp_path) == before
    assert not (tmp_path / "p" / "m" / "s3").exists()


def test_a_write_that_cannot_be_read_again_is_refused(tmp_path: Path) -> None:
    """Requests that are not those described, and one cell twice, are refused before anything is written."""
    write = recorded()
    for wrong in (
        [Write(write.new, PACKED + b"x")],
        [Write(write.new)],
        [Write(stored(), PACKED)],
        [write, write],
    ):
        with pytest.raises(BaselineError):
            store.write_all(tmp_path / "b", wrong)
    assert not (tmp_path / "b").exists()


def test_requests_that_are_no_longer_kept_go(tmp_path: Path) -> None:
    """Writing a cell without requests removes the file of the old ones."""
    store.write_all(tmp_path, [recorded()])
    (path,) = store.write_all(tmp_path, [Write(stored())])
    assert [p.name for p in path.parent.iterdir()] == ["context-1000.json"]


def test_values_that_do_not_fit_are_refused() -> None:
    """What a caller gets wrong is a BaselineError that names the cell."""
    with pytest.raises(BaselineError, match="cannot become a baseline"):
        update.record(
            CELL,
            [(boot(), ROWS[0])],
            label="x",
            run_id="r",
            recorded="today",
            comparability={},
            versions={},
            workload=HASH,
        )


def test_a_baseline_grows_over_days(tmp_path: Path) -> None:
    """Boots of another session are added with their requests, and both are read back."""
    store.write_all(tmp_path, [recorded()])
    old = store.read(tmp_path, CELL)
    assert old is not None
    whole = store.read_requests(tmp_path, old)
    later = recorded(worse=0.02)
    boots = tuple(b.model_copy(update={"run_id": "r2"}) for b in later.new.boots)
    later = Write(later.new.model_copy(update={"boots": boots}), later.requests)
    store.write_all(tmp_path, [update.extend(later, old, whole)])
    grown = store.read(tmp_path, CELL)
    assert grown is not None
    assert [b.run_id for b in grown.boots] == ["r1"] * 3 + ["r2"] * 3
    frame = store.read_requests(tmp_path, grown)
    assert frame["boot"].nunique() == 6
    assert frame[frame["boot"] == 4]["first_token_s"].tolist() == pytest.approx(ROWS[1]["first_token_s"], abs=1e-5)


def test_a_baseline_does_not_grow_by_what_is_unlike_it() -> None:
    """Another version, workload or environment has another centre; the same session is not taken twice."""
    write = recorded()
    rows = unpacked(PACKED, COUNT)
    with pytest.raises(BaselineError, match="in it already"):
        update.extend(write, write.new, rows)
    other = write.new.model_copy(update={"versions": {"vllm": "3"}, "workload": "0" * 64})
    with pytest.raises(BaselineError, match=r"vllm: 3 -> 2; another cell or workload"):
        update.extend(write, other, rows)
    with pytest.raises(BaselineError, match="no requests"):
        update.extend(Write(stored()), stored(), rows)


def test_refusals_of_an_update() -> None:
    """An invalid, dirty or small run is refused, with every reason."""
    bad = [boot(), boot(faults=["a server failed"])]
    lines = update.refusals(bad, DEFAULT_METRICS, dirty="kvcache.toml")
    assert lines == [
        "boot 2: a server failed",
        "uncommitted changes: kvcache.toml",
        "2 boots are too few: a baseline needs 6",
    ]
    assert update.refusals([boot()] * 6, DEFAULT_METRICS) == []
    assert update.refusals([boot()] * 2, DEFAULT_METRICS, least_boots=2) == []


def test_what_an_update_changes() -> None:
    """Old → new of every metric, with an interval, and what else differs."""
    old = stored(keys={"hardware.cpu": "x"})
    new = stored([0.1 + d for d in (-0.02, 0.0, 0.02, 0.01, -0.01, 0.0)], keys={"hardware.cpu": "y"})
    change = update.diff(old, new)
    assert change.comparability == ("hardware.cpu: x -> y",)
    assert change.versions == ()
    ttft, speed, _ = change.metrics
    assert ttft.ratio == pytest.approx(1.105, abs=1e-3)
    assert ttft.low < ttft.ratio < ttft.high
    assert speed.ratio == pytest.approx(1 / 1.105, abs=1e-3)
    assert change.table().shape == (3, 5)
    alone = update.diff(old, stored([0.1]))
    assert alone.table()["95 % interval"].tolist() == ["-"] * 3
    assert sibling().cell.context_tokens == 3500
