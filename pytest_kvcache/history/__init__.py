"""What past runs say of a cell, and the search for the release that moved it."""
