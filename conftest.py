"""This repository's own choices; the plugin itself comes from its installed entry point."""

pytest_plugins = ["pytester"]
