"""What only whole sessions on stubs need."""

import tests.untimed  # noqa: F401 - loads the profile of all examples
from tests.quick import pytest_collection_finish

__all__ = ["pytest_collection_finish"]
