"""The pNFS lab, as far as it needs no guest."""
