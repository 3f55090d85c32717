"""Probe a fresh pair before it is measured: is it cold, do its servers share the storage, is loaded KV right."""
