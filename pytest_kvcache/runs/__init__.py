"""A run's own things: its folder, its record of what it started, and the end of all of it."""
