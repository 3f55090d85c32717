"""Subcommands of `pytest-kvcache`."""
