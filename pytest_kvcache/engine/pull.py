"""Have a daemon fetch an image, and tell how far it is. It is done only where somebody asked for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_kvcache.config.image_reference import ImageReference
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.runs import containers

#: A layer in one of these states needs nothing more.
_DONE = ("Pull complete", "Already exists", "Download complete and extracted")
_FETCHED = ("Download complete", "Verifying Checksum", "Extracting")
_DOWNLOADING = "Downloading"


@dataclass(frozen=True)
class Pulled:
    """How far a pull is.

    Args:
        layers: That the image has, as far as they are known.
        done: Of these, those that are there.
        fetched_bytes: Of the layers that are being fetched, or were.
        total_bytes: What these have in all; it grows while layers begin.
        status: What the daemon does, where it says nothing of layers (Podman).
    """

    layers: int = 0
    done: int = 0
    fetched_bytes: int = 0
    total_bytes: int = 0
    status: str = ""

    def __str__(self) -> str:
        """Return it as a line."""
        if not self.layers:
            return self.status or "asking the registry"
        size = f", {self.fetched_bytes / 1e9:.2f} of {self.total_bytes / 1e9:.2f} GB" if self.total_bytes else ""
        return f"{self.done} of {self.layers} layers{size}"


class PullProgress:
    """Adds up the events of a pull."""

    def __init__(self) -> None:
        self._layers: dict[str, tuple[str, int, int]] = {}
        self._status = ""

    def read(self, event: Mapping[str, Any]) -> Pulled:
        """Return how far the pull is after an event.

        Args:
            event: An object of the stream that `POST /images/create` answers with.
        """
        status, layer = str(event.get("status") or event.get("stream") or "").strip(), str(event.get("id") or "")
        if layer and not status.startswith("Pulling from"):
            _, had, total = self._layers.get(layer, ("", 0, 0))
            detail = event.get("progressDetail") or {}
            if status == _DOWNLOADING and detail.get("total"):
                had, total = int(detail.get("current") or 0), int(detail["total"])
            elif status in {*_FETCHED, *_DONE}:
                had = total
            self._layers[layer] = (status, had, total)
        elif status:
            self._status = status
        states = self._layers.values()
        return Pulled(
            layers=len(self._layers),
            done=sum(state in _DONE for state, _, _ in states),
            fetched_bytes=sum(had for _, had, _ in states),
            total_bytes=sum(total for _, _, total in states),
            status=self._status,
        )


def pull(reference: ImageReference, told: Callable[[Pulled], None], *, where: str) -> None:
    """Have the daemon fetch an image with the credentials of the `docker` command (~/.docker/config.json).

    Args:
        reference: By name; one with a digest is checked by the daemon.
        told: Gets how far it is, several times a second.
        where: The engine as the user named it, for errors.

    Raises:
        ConfigError: The registry or the daemon refuses, or there is no such image; with the daemon's words.
    """
    if not reference.name:
        raise ConfigError("an id cannot be pulled", where=where, todo="name the image: NAME@sha256:DIGEST")
    progress = PullProgress()
    with containers.daemon(containers.address()) as client:
        for event in client.api.pull(reference.name, tag=reference.version, stream=True, decode=True):
            if error := event.get("error"):
                raise ConfigError(f"docker: {' '.join(str(error).split())}", where=where)
            told(progress.read(event))
