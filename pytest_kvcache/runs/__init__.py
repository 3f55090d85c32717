"""What belongs to a run: its folder, the record of what it started, and how all of that is ended."""
