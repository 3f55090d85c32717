"""Words that must reach no output and no file: one place that takes them out of whatever leaves a load process.

Servers echo keys in their error messages, and libraries name the header that they cannot send. So a key is registered
where it is read, and every text from elsewhere goes through `redacted` before it is cut, printed or kept.
"""

from __future__ import annotations

import base64
import json
from urllib.parse import quote, quote_plus

_HIDDEN = "***"
#: Shorter words would take ordinary text with them.
_LEAST = 4
_secrets: set[str] = set()


def hide(secret: str) -> None:
    """Have a secret, and the ways in which it is commonly written, taken out of all texts from now on."""
    if len(secret) < _LEAST:
        return
    raw = secret.encode()
    written = {secret, quote(secret, safe=""), quote(secret), quote_plus(secret), json.dumps(secret)[1:-1]}
    written |= {repr(secret)[1:-1], raw.hex()}
    # Base64 of a longer text has the same letters wherever three bytes begin: the first or last ones may differ.
    for before in range(3):
        coded = base64.b64encode(b"\0" * before + raw).decode()
        inner = coded[-(-before * 8 // 6) : len(coded) - (4 if (before + len(raw)) % 3 else 0)]
        written |= {inner, inner.replace("+", "-").replace("/", "_")}
    _secrets.update(each for each in written if len(each) >= _LEAST)


def redacted(text: str) -> str:
    """Return a text without the secrets that were registered."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    return text


def forget() -> None:
    """Forget all secrets."""
    _secrets.clear()
