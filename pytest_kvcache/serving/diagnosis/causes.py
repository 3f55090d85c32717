"""All known causes of the failures of components."""

from __future__ import annotations

from pytest_kvcache.serving.diagnosis.cause import Cause
from pytest_kvcache.serving.diagnosis.endings import ENDINGS
from pytest_kvcache.serving.diagnosis.engine import ELSEWHERE, ENGINE
from pytest_kvcache.serving.diagnosis.storage import STORAGE

#: The first cause that explains a statement counts.
CAUSES: tuple[Cause, ...] = (*ENDINGS, *ENGINE, *STORAGE, *ELSEWHERE)
