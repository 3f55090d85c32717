"""What every launcher must do, whatever it starts: one suite for all of them."""
