"""What only the unit tests need."""

from tests.quick import pytest_collection_finish

__all__ = ["pytest_collection_finish"]
