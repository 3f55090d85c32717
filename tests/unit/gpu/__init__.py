"""GPUs beside a run: NVML replayed under nvidia-ml-py, and what is made of it."""
