"""Performance regression testing of KV cache offloading, as a pytest plugin."""

__version__ = "0.1.0"
