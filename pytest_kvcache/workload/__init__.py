"""What is sent, and when: kinds of workload, each of which makes a script."""
