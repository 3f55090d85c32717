"""Where KV goes when the device cache is full: one file a tier kind."""
