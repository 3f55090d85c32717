"""What is checked and mended in the HTML of the site; mkdocs is not needed for it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

#: Attributes by which a tag has the browser load something. A plain link (`a`) loads nothing by itself.
_LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}


def foreign(html: str) -> list[str]:
    """Return the addresses of other hosts from which a browser would load a part of this page."""
    reader = _Loads()
    reader.feed(html)
    return reader.found


def without_backslashes(html: str) -> str:
    """Return a page without the backslash that Markdown needs before a `|` in code of a table's cell."""
    return re.sub(r"<td[^>]*>.*?</td>", lambda cell: cell[0].replace(r"\|", "|"), html, flags=re.DOTALL)


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(_LOADS.get(tag, ""))
        if address and address.startswith(("http:", "https:", "//")):
            self.found.append(address)
