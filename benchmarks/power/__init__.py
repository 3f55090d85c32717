"""How often the procedure is wrong, and what it costs, by simulation. `python -m benchmarks.power.simulate`."""
