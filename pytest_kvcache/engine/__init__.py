"""The engine environment: vLLM, LMCache, router and S3 server, apart from pytest's own environment."""
