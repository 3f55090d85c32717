"""Why a component failed, by its log: known causes, how a log is read, and what is said of it."""
