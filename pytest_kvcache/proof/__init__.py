"""Prove where every prompt token's KV came from, and whether the tier's claim holds (pure: no pytest, no I/O)."""
