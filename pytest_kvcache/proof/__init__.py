"""Where every prompt token's KV came from, and whether that is what the tier claims (pure: no pytest, no I/O)."""
