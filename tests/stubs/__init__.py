"""Stand-ins for servers, for unit tests of the client and for fault injection. What they yield is never a result."""
