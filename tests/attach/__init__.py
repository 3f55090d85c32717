"""A real deployment that is attached to (`make attach-test`)."""
