"""Names of container images, read as Docker reads them (github.com/distribution/reference)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pytest_kvcache.errors import ConfigError

_HUB = "docker.io"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
_REFERENCE = re.compile(
    rf"(?P<name>(?:{_DOMAIN}/)?{_PART}(?:/{_PART})*)(?::(?P<tag>\w[\w.-]{{0,127}}))?(?:@(?P<digest>sha256:[0-9a-f]{{64}}))?",
    re.ASCII,
)
_ID = re.compile(r"(?:sha256:)?[0-9a-f]{64}")
_LONGEST_NAME = 255
_ALLOWED = "[REGISTRY[:PORT]/]NAME[:TAG][@sha256:DIGEST], in small letters; or an image's id, sha256:…"


@dataclass(frozen=True)
class ImageReference:
    """An image by name.

    Args:
        name: With the registry where one is named; "" for an image that is named by its id alone.
        tag: "" where none is named, which means `latest` unless there is a digest.
        digest: `sha256:…` of the image in its registry, "" where none is named. It decides, whatever the tag.
        id: Of an image that is named by its id, else "".
    """

    name: str
    tag: str = ""
    digest: str = ""
    id: str = ""

    @property
    def is_pinned(self) -> bool:
        """Whether the name can only ever mean one image."""
        return bool(self.digest or self.id)

    @property
    def version(self) -> str:
        """What a registry is asked for: the digest, else the tag."""
        return self.digest or self.tag or "latest"

    @property
    def full_name(self) -> str:
        """The name with its registry, as Docker completes it."""
        first, slash, _ = self.name.partition("/")
        if slash and (first == "localhost" or set(first) & {".", ":"} or first != first.lower()):
            name = self.name.removeprefix("index.docker.io/")
            if name == self.name and first != _HUB:
                return name
            rest = name.removeprefix(f"{_HUB}/")
            return f"{_HUB}/{rest}" if "/" in rest else f"{_HUB}/library/{rest}"
        return f"{_HUB}/{self.name}" if slash else f"{_HUB}/library/{self.name}"

    def __str__(self) -> str:
        """Return the name as it is written."""
        tag, digest = f":{self.tag}" if self.tag else "", f"@{self.digest}" if self.digest else ""
        return self.id or f"{self.name}{tag}{digest}"


def parse_reference(text: str, *, where: str) -> ImageReference:
    """Return the image that a text names.

    Args:
        text: `NAME`, `NAME:TAG`, `NAME@sha256:…`, or both; NAME may begin with a registry and its port.
        where: The key or option, for errors.

    Raises:
        ConfigError: It is not of that form.
    """
    if _ID.fullmatch(text):
        return ImageReference("", id=text if text.startswith("sha256:") else f"sha256:{text}")
    found = _REFERENCE.fullmatch(text)
    if found is None or len(found["name"]) > _LONGEST_NAME:
        raise ConfigError(f"{text!r} is no name of an image; allowed: {_ALLOWED}", where=where)
    return ImageReference(found["name"], found["tag"] or "", found["digest"] or "")


def digest_among(repo_digests: list[str], reference: ImageReference) -> str:
    """Return the digest that an image has in the registry of its name, "" for one that came from no registry.

    Args:
        repo_digests: `NAME@sha256:…` of every repository that the image was pulled from.
        reference: How it was named; of the digests that of the same repository is taken, else the only one there is.
    """
    if reference.digest:
        return reference.digest
    found: dict[str, str] = {}
    for each in repo_digests:
        name, _, digest = each.partition("@")
        if digest.startswith("sha256:"):
            found[ImageReference(name).full_name] = digest
    if reference.name and (digest := found.get(reference.full_name, "")):
        return digest
    digests = set(found.values())
    return digests.pop() if len(digests) == 1 else ""
