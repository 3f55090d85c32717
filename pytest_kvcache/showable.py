"""Writes plainer characters to terminals, pipes and logs whose encoding cannot show all of a text, without an error."""

from __future__ import annotations

import codecs
import io
import unicodedata

_HANDLER = "pytest_kvcache.plainer"

#: The plain text that replaces each character; all other characters become escapes, `\\u2588` for instance.
_PLAINER = {
    "…": "...", "→": "->", "←": "<-", "·": "*", "•": "*", "±": "+/-", "≤": "<=", "≥": ">=", "µ": "u", "°": "deg ",
    "\N{MULTIPLICATION SIGN}": "x", "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{EM DASH}": "-",
    "\N{NON-BREAKING HYPHEN}": "-", "\N{LEFT SINGLE QUOTATION MARK}": "'", "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{LEFT DOUBLE QUOTATION MARK}": '"', "\N{RIGHT DOUBLE QUOTATION MARK}": '"', "\N{NO-BREAK SPACE}": " ",
}  # fmt: skip


def make_showable(stream: object) -> None:
    """Have a text stream write plainer characters for those that it cannot show; other objects are not changed."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=_HANDLER)


def showable(text: str, stream: object) -> str:
    """Return `text` with plainer characters for those that the text stream cannot show."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, _HANDLER).decode(encoding, "backslashreplace")


def can_show(text: str, stream: object) -> bool:
    """Return whether a text stream can show every character of `text`."""
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


#: How lines begin that CI services (GitHub, Azure, TeamCity) take for commands to them, also behind blanks.
_COMMANDS = ("::", "##[", "##vso[", "##teamcity[")


def inert(text: str) -> str:
    """Return `text` with a mark before each line that a CI service would take for a command to it.

    Messages quote servers and logs, and a line of theirs must not set a variable or end a job's masking of secrets.
    """
    lines = text.split("\n")
    return "\n".join(f"| {line}" if line.lstrip().startswith(_COMMANDS) else line for line in lines)


def visible(text: object) -> str:
    """Return a text with escapes for control characters and for marks that turn the direction of writing.

    Terminals obey the former, and a drawing of a text that XML cannot hold ends the process.
    """
    return "".join(_visible(character) for character in str(text))


def _visible(character: str) -> str:
    kind = unicodedata.category(character)
    if character in "\n\t":
        return character
    return f"\\u{ord(character):04x}" if kind in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") else character


def _plainer(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character, after = error.object[error.start], error.start + 1
    if "\udc80" <= character <= "\udcff":  # Python's sign for a byte of a file name that it could not decode
        return bytes([ord(character) - 0xDC00]), after
    return _PLAINER.get(character, character.encode("ascii", "backslashreplace").decode("ascii")), after


codecs.register_error(_HANDLER, _plainer)
