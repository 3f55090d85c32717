"""The choice of load balancers."""
