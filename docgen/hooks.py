"""The hooks of mkdocs that add the generated pages, and refuse a page that loads from the network (mkdocs.yml)."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docgen.html import foreign, without_backslashes
from docgen.pages import pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages; none of them is written into `docs/`."""
    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_content(html: str, **_: object) -> str:
    """Return the page with bars in tables as they are meant."""
    return without_backslashes(html)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:  # noqa: ARG001 - named as mkdocs passes them
    """Return the page unchanged.

    Raises:
        PluginError: The page would load something from the network.
    """
    if found := foreign(output):
        raise PluginError(f"{page.file.src_uri} loads from the network: {', '.join(found)}")
    return output
