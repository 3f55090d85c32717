"""The kinds of load balancers that may stand in front of a pair's servers, one file each."""
