"""Ways to run a component: one file each."""
