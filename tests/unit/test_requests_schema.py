"""The table of requests as a file: its documented columns, its version, and files that are none."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from pytest_kvcache.errors import ResultsError
from pytest_kvcache.load import records, schema, table
from pytest_kvcache.load.records import RequestRecord

PAGE = (Path(__file__).parents[2] / "docs" / "files.md").read_text(encoding="utf-8")
ROWS = [
    RequestRecord(1, 1, 0.0, 0.0, 0.1, 0.5, 0.9, 100, 7, 100, 7, 64, "ok", server="vllm-0", token_times_s=[0.5, 0.9]),
    RequestRecord(2, 1, 1.5),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with one request that finished and one that was never sent."""
    found = tmp_path / "requests.parquet"
    records.save(ROWS, found)
    return found


def test_the_page_has_the_columns_of_the_code() -> None:
    """The table in docs/files.md is the one of the code, word for word, and names the version that is written."""
    assert schema.markdown() in PAGE
    assert f"Version {schema.VERSION}." in PAGE
    assert f"`{schema.VERSION_KEY.decode()}`" in PAGE


def test_every_field_of_a_row_has_a_column() -> None:
    """Columns are the fields of `RequestRecord` in their order, with the unit of their name."""
    assert [column.name for column in schema.COLUMNS] == [field.name for field in fields(RequestRecord)]
    for column in schema.COLUMNS:
        ending = re.search(r"_(s|tokens)$", column.name)
        assert column.unit == (ending[1] if ending else "")


def test_columns_that_are_never_null_are_not(path: Path) -> None:
    """What the page calls never null has a value also where a request was not sent; the others are null there."""
    frame = parquet.read_table(path).to_pandas()
    for column in schema.COLUMNS:
        assert frame[column.name].notna().all() == column.null_when.startswith("never"), column.name


def test_the_version_is_written_and_read_back(path: Path) -> None:
    """The file's own metadata says the version, and reading gives what was written."""
    assert parquet.read_schema(path).metadata[schema.VERSION_KEY] == str(schema.VERSION).encode()
    pd.testing.assert_frame_equal(table.read(path), table.to_frame(ROWS), check_dtype=False)


def _rewritten(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    parquet.write_table(change(parquet.read_table(path)), path)


def _version(text: str) -> Callable[[pa.Table], pa.Table]:
    return lambda rows: rows.replace_schema_metadata({schema.VERSION_KEY: text.encode()})


def test_a_file_without_a_version_is_of_the_first(path: Path) -> None:
    """Files from before the version was written are read."""
    _rewritten(path, lambda rows: rows.replace_schema_metadata(None))
    assert len(table.read(path)) == 2


def test_a_column_of_a_later_file_is_passed_over(path: Path) -> None:
    """A column that this version does not know is no error within the same version."""
    _rewritten(path, lambda rows: rows.append_column("new_s", pa.array([1.0, 2.0])))
    assert "new_s" not in table.read(path)


def test_a_file_from_before_load_nodes_is_read(path: Path) -> None:
    """A file of this version that lacks the column `node` is read, with an empty one."""
    _rewritten(path, lambda rows: rows.drop_columns(["node"]))
    assert table.read(path)["node"].tolist() == ["", ""]


def test_rows_of_many_groups_are_all_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are written in groups, so that no copy of all is made; none is lost, and order and nulls stay."""
    monkeypatch.setattr(records, "_GROUP_ROWS", 3)
    for count in (0, 1, 3, 7):
        rows = [RequestRecord(n, 1, float(n), first_token_s=n / 2 if n % 2 else None) for n in range(count)]
        records.save(reversed(rows), tmp_path / "r.parquet")
        found = table.read(tmp_path / "r.parquet")
        assert found["user"].tolist() == list(range(count))
        assert found["first_token_s"].isna().tolist() == [n % 2 == 0 for n in range(count)]
        assert parquet.ParquetFile(tmp_path / "r.parquet").num_row_groups == -(-count // 3)


@pytest.mark.parametrize("text", ["2", "17", "999999999"])
def test_a_newer_version_is_refused_by_name(path: Path, text: str) -> None:
    """A newer version is named with the newest that is read, and with what to do."""
    _rewritten(path, _version(text))
    with pytest.raises(ResultsError, match=rf"requests\.parquet: is a table of requests of version {text}; .* up to 1"):
        table.read(path)


@pytest.mark.parametrize("text", ["", "0", "-1", "1.0", "one", "²", "1" * 5000, "\x00"])
def test_what_is_no_version_is_refused(path: Path, text: str) -> None:
    """A version that is no counting number is refused in one line."""
    _rewritten(path, _version(text))
    with pytest.raises(ResultsError, match="which is no version") as caught:
        table.read(path)
    assert "\n" not in str(caught.value)


CHANGES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "column user is missing": lambda rows: rows.drop_columns(["user"]),
    "column error is there twice": lambda rows: rows.append_column("error", pa.array(["", ""])),
    "column round is string": lambda rows: rows.set_column(1, "round", pa.array(["1", "1"])),
    "column token_times_s is double": lambda rows: rows.set_column(
        rows.column_names.index("token_times_s"), "token_times_s", pa.array([1.0, 2.0])
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_table_is_refused_by_its_column(path: Path, what: str) -> None:
    """A Parquet file with other columns or types is refused with the file and the column."""
    _rewritten(path, CHANGES[what])
    with pytest.raises(ResultsError, match=what) as caught:
        table.read(path)
    assert caught.value.where == str(path)


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_file_is_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A file that is cut, or in which a byte was changed, is read as it was or refused; nothing else happens."""
    whole = tmp_path_factory.getbasetemp() / "whole.parquet"
    if not whole.exists():
        records.save(ROWS, whole)
    content = bytearray(whole.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = tmp_path_factory.getbasetemp() / "damaged.parquet"
    damaged.write_bytes(content)
    found: object = None
    try:
        found = table.read(damaged)
    except ResultsError as error:
        found = error
    if isinstance(found, ResultsError):
        assert found.where == str(damaged)
        assert "\n" not in found.what
    else:
        assert isinstance(found, pd.DataFrame)
        assert len(found) <= 2


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1", b"\0" * 4096, b'{"user": 1}', b"user,round\n1,1\n"])
def test_what_is_no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    """An empty file, one of another kind and a mere beginning are refused with the file's name."""
    path = tmp_path / "requests.parquet"
    path.write_bytes(content)
    with pytest.raises(ResultsError, match=r"requests\.parquet: is no whole Parquet file"):
        table.read(path)
