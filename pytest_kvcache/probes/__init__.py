"""Looks at a fresh pair before it is measured: is it cold, do its servers share what they should, is it the same KV."""
