"""Deployments that already stand: where their servers are, what is known of them, and whether they stay as they are."""
