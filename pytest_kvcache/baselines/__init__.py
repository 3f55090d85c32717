"""Baseline files: found, read, compared, written whole, carried over from older schemas."""
