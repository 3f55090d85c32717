"""What storage says of itself: mounts and their counters, RDMA links, buckets, listings."""
