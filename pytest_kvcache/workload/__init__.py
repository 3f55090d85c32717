"""The load: what is sent and when, sending it, and one row for every request."""
