"""What is exchanged with other tools: exports of runs, and imports of other tools' results as runs."""
