"""What only whole sessions on stubs need."""

from tests.quick import pytest_collection_finish

__all__ = ["pytest_collection_finish"]
