"""Laboratories: storage that this project is tested on, and that has to be made before it can be mounted."""
