"""Configurations of balancers as Jinja templates: ours, or a user's own in their place."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pytest_kvcache.config.balancer import Balancer
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.serving.balancers.base import MAX_INFLIGHT, Front

BUILT_IN = Path(__file__).parent


def filled_in(settings: Balancer, built_in: Path, front: Front, *, port: int, metrics_port: int) -> str:
    """Return a configuration.

    Args:
        settings: The profile's balancer; its template comes before the built-in one.
        built_in: The built-in template.
        front: What a template may name: the servers, the address, the folder.
        port: Port for requests.
        metrics_port: Port for counters.

    Raises:
        ConfigError: The template cannot be read, is none, or names what there is not.
    """
    import jinja2  # noqa: PLC0415 - sessions with the router of the engine need none

    path = settings.template or built_in
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - a configuration, no HTML
    )
    names = {
        "host": front.bracketed,
        "port": port,
        "metrics_port": metrics_port,
        "servers": [{"name": name, "address": address} for name, address in front.addresses().items()],
        "policy": settings.policy,
        "folder": str(front.scratch / settings.kind),
        "max_inflight": MAX_INFLIGHT,
    }
    if settings.template is None:
        names["beyond"] = front.beyond
    try:
        return environment.from_string(_text(path)).render(names)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"line {error.lineno}: {error.message}", where=str(path), todo=_TODO) from None
    except jinja2.UndefinedError as error:
        known = ", ".join(names)
        raise ConfigError(f"{error.message}; a template may name {known}", where=str(path), todo=_TODO) from None
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{type(error).__name__}: {error}", where=str(path), todo=_TODO) from None


_TODO = "docs/balancers.md has the templates to begin with"


def digest(settings: Balancer) -> str:
    """Return a digest of a user's own template, "" where there is none.

    Raises:
        ConfigError: The template cannot be read.
    """
    if settings.template is None:
        return ""
    return hashlib.sha256(_text(settings.template).encode()).hexdigest()[:12]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except UnicodeDecodeError:
        raise ConfigError("is no text in UTF-8", where=str(path)) from None
