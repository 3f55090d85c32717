"""Booting a pair of servers behind a balancer, watching the pair, and ending it without a trace."""
