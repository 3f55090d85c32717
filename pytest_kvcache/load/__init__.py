"""A run of a workload against an endpoint: its process, a row for every request, and whether it may be judged."""
