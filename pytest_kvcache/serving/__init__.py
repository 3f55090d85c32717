"""Booting a pair of servers behind a balancer, watching it, and ending it without a trace."""
