"""Whole sessions of pytest with the plugin, in which small programs stand in for the engine."""
