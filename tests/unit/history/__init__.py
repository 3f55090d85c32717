"""Tests of what past runs say of a cell."""
