"""Find in its log why a component failed: known causes, the reading of logs, and the diagnosis."""
