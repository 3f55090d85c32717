"""LMCache inside vLLM's CPU build: copies KV between vLLM's paged CPU tensors and LMCache's chunks.

`plugin` is what vLLM loads; it imports the rest only when vLLM makes an LMCache connector on the CPU.
"""
