"""The tier kinds, which say where KV goes when the device cache is full: one module for each kind."""
