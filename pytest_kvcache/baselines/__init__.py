"""Baseline files are found, read, compared, written whole and carried over from older schemas here."""
