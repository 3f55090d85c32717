"""The hooks of mkdocs that add the generated pages, and refuse a page that loads from the network (mkdocs.yml)."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docgen.pages import pages

#: Attributes by which a tag has the browser load something. A plain link (`a`) loads nothing by itself.
_LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages; none of them is written into `docs/`."""
    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_content(html: str, **_: object) -> str:
    """Return the page without the backslash that Markdown needs before a `|` in code of a table's cell."""
    return re.sub(r"<td[^>]*>.*?</td>", lambda cell: cell[0].replace(r"\|", "|"), html, flags=re.DOTALL)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:  # noqa: ARG001 - named as mkdocs passes them
    """Return the page unchanged.

    Raises:
        PluginError: The page would load something from the network.
    """
    if found := foreign(output):
        raise PluginError(f"{page.file.src_uri} loads from the network: {', '.join(found)}")
    return output


def foreign(html: str) -> list[str]:
    """Return the addresses of other hosts from which a browser would load a part of this page."""
    reader = _Loads()
    reader.feed(html)
    return reader.found


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(_LOADS.get(tag, ""))
        if address and address.startswith(("http:", "https:", "//")):
            self.found.append(address)
