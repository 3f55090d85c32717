"""What a tier's storage says itself of what it was given and asked for, beside LMCache's counters."""
