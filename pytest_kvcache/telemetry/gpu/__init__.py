"""NVIDIA GPUs beside a run: what NVML says of them once a second, in a process of its own."""
