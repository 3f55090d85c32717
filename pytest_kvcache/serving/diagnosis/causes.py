"""All that is known of the ways in which components fail."""

from __future__ import annotations

from pytest_kvcache.serving.diagnosis.cause import Cause
from pytest_kvcache.serving.diagnosis.endings import ENDINGS
from pytest_kvcache.serving.diagnosis.engine import ELSEWHERE, ENGINE
from pytest_kvcache.serving.diagnosis.storage import STORAGE

#: The first that explains a statement counts.
CAUSES: tuple[Cause, ...] = (*ENDINGS, *ENGINE, *STORAGE, *ELSEWHERE)
