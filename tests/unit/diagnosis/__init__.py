"""What is said of a failed component by its log."""
