"""What tests and hooks of others get: results with typed figures, verdicts, boots. `pytest_kvcache` exports all of it."""
