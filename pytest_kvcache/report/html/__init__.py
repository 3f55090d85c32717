"""The HTML report: one file that holds everything it needs, made of the files that runs left."""
