"""How a run grows with servers and users: parts measured on this machine by the code of a run, the rest simulated."""
