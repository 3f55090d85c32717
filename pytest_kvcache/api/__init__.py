"""What tests and hooks of others get: typed figures, verdicts, boots. `pytest_kvcache` exports all of it."""
