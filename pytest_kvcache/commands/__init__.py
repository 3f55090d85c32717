"""The subcommands of `pytest-kvcache`, one module each."""
