"""What people read: tables, verdicts, what to do next."""
