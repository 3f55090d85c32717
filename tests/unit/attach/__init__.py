"""Deployments that stand: how they are described, found, probed, and told from what others do to them."""
