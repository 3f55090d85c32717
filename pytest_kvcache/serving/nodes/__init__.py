"""What runs on nodes of a cluster: an agent for each place, and what ends its processes where the agent dies."""
