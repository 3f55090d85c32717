"""JSON values from a file of any size, one after the other, in memory for one value.

The file is a JSON array, whose elements are the values, or holds values one after the other, as JSON lines do
(RFC 8259, section 2; jsonlines.org). The standard library's parser reads each value. So what stands in keys that nobody
asks for may be what Python's own writer writes: NaN, 1e999, integers of any size, half of a surrogate pair.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pytest_kvcache.errors import ConfigError

#: Characters that are read at a time, and the most that one value may have.
_CHUNK = 1 << 15
_LONGEST = 1 << 24
#: Where the parser ends so few characters before the end of what was read, it may have had half a literal or number.
_LITERAL = 16
_SPACE = re.compile(r"[ \t\r\n]*")
_AS_LINES = "write it as JSON lines, as pandas.{}(…).to_json(…, orient='records', lines=True) does"
#: How files begin that hold no JSON, or JSON in another form.
_FOREIGN = {
    b"\x1f\x8b": ("is compressed (gzip)", "unpack it"),
    b"\x28\xb5\x2f\xfd": ("is compressed (zstd)", "unpack it"),
    b"\xfd7zXZ": ("is compressed (xz)", "unpack it"),
    b"BZh": ("is compressed (bzip2)", "unpack it"),
    b"PK\x03\x04": ("is a zip archive", "unpack it"),
    b"PAR1": ("is a Parquet file", _AS_LINES.format("read_parquet")),
    b"ARROW1": ("is an Arrow file", _AS_LINES.format("read_feather")),
    b"version https://git-lfs": ("is a pointer of Git LFS, and not the file", "git lfs pull, or download it again"),
    b"\xff\xfe": ("is UTF-16", "save it as UTF-8"),
    b"\xfe\xff": ("is UTF-16", "save it as UTF-8"),
}


def json_values(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield each value of the file with its number from 1; no more is read than the values that are taken.

    Args:
        path: A file in UTF-8, with or without a byte order mark.

    Raises:
        ConfigError: The file cannot be read, or is not JSON; the message names the file, the value and its line.
    """
    try:
        refuse_other_files(path)
        with path.open(encoding="utf-8-sig", newline="") as text:
            yield from _Values(text, path)
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", where=str(path)) from None


def not_utf8(path: Path, error: UnicodeDecodeError) -> ConfigError:
    """Return the error of a file that could not be decoded, with its line, which is looked for anew."""
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                line += decoder.decode(chunk).count("\n")
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as found:
        line += found.object.count(b"\n", 0, found.start)
    return ConfigError(f"is not UTF-8: {error.reason} (line {line})", where=str(path), todo="save it as UTF-8")


def refuse_other_files(path: Path) -> None:
    """Raise where a file is none that can be read as JSON more than once.

    Raises:
        ConfigError: It is a pipe or the like, compressed, or of another format or encoding.
        OSError: It cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ConfigError("is no regular file, and is read more than once", where=str(path))
    with path.open("rb") as file:
        start = file.read(32)
    for mark, (what, todo) in _FOREIGN.items():
        if start.startswith(mark):
            raise ConfigError(what, where=str(path), todo=todo)


class _Values:
    """The values of a text; what lies behind `_at` in `_read` is not yet taken."""

    def __init__(self, text: IO[str], path: Path) -> None:
        self._text, self._path = text, path
        self._read, self._at = "", 0
        self._line = 1
        self._number = 0
        self._decoder = json.JSONDecoder()

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        in_array = self._next() == "["
        if in_array:
            self._at += 1
        if self._next() == "]" and in_array:
            self._at += 1
            self._end()
            return
        while in_array or self._next():
            self._number += 1
            yield self._number, self._value()
            if in_array and not self._goes_on():
                self._end()
                return

    def _next(self) -> str:
        """Return the next character that is no space, "" at the end; it is not taken."""
        while True:
            found = _SPACE.match(self._read, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._read):
                return self._read[self._at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Drop what was taken, and read as much again as is left, at least a chunk; at the end return False."""
        left = len(self._read) - self._at
        if left > _LONGEST:
            raise self._error(f"is longer than {_LONGEST >> 20} MiB, and no conversation", self._line_here())
        added = self._text.read(max(_CHUNK, left))
        if not added:
            return False
        self._line = self._line_here()
        self._read, self._at = self._read[self._at :] + added, 0
        return True

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._read, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._read) - _LITERAL
                if cut and self._more():
                    continue
                line = self._line + self._read.count("\n", 0, error.pos)
                raise self._error(f"is not JSON: {error.msg}", line) from None
            except (ValueError, RecursionError) as error:
                raise self._error(f"is not JSON that can be read: {error}"[:160], self._line_here()) from None
            if end > len(self._read) - _LITERAL and not isinstance(value, dict | list | str) and self._more():
                continue
            self._at = end
            return value

    def _goes_on(self) -> bool:
        """Take what stands behind an element of an array, and return whether another element follows."""
        found = self._next()
        if found not in {",", "]"}:
            what = "the array has no end" if not found else f"is not JSON: {found!r} where ',' or ']' must stand"
            raise self._error(what, self._line_here())
        self._at += 1
        return found == ","

    def _end(self) -> None:
        if self._next():
            raise self._error("is not JSON: something stands behind the array's end", self._line_here())

    def _line_here(self) -> int:
        return self._line + self._read.count("\n", 0, self._at)

    def _error(self, what: str, line: int) -> ConfigError:
        return ConfigError(f"{what} (line {line})", where=f"{self._path}: entry {max(1, self._number)}")
