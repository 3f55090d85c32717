"""The workload kinds by name, our own and third parties', from the entry point group `pytest_kvcache.workloads`."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from pytest_kvcache.workload import prepared
from pytest_kvcache.workload.base import Workload

GROUP = "pytest_kvcache.workloads"
DEFAULT_KIND = "multi-round-qa"


@cache
def workload_kinds() -> dict[str, EntryPoint]:
    """Return the entry point of every workload kind that is installed, by the name that `kind =` takes."""
    return {point.name: point for point in entry_points(group=GROUP)}


def _of_its_kind(value: Any) -> Any:
    if isinstance(value, dict):
        kind = value.get("kind", DEFAULT_KIND)
        if kind == prepared.KIND:
            return prepared.Prepared.model_validate(value)
        if not isinstance(kind, str) or kind not in workload_kinds():
            raise ValueError(f"kind {kind!r} is not allowed; allowed: {', '.join(workload_kinds())}")
        return workload_kinds()[kind].load().model_validate(value)
    return value


#: A workload of the kind that its data name; the keys of that kind are kept when the workload is written down.
AnyWorkload = Annotated[SerializeAsAny[Workload], BeforeValidator(_of_its_kind)]
