"""Tests that need the lab's guest: `make pnfs-lab-test`."""
