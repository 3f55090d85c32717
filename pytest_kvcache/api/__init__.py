"""What users' tests and hooks get: typed figures, verdicts and boots. `pytest_kvcache` exports all of these names."""
