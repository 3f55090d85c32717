"""Boots of one tier until all its cells are decided: the order of work of a session."""
