"""A load that is spread over machines: an agent on each of them, and the coordinator that has them send."""
