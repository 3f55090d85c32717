"""What servers, processes and the machine say about themselves."""
