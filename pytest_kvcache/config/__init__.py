"""What a run is made of: profiles and tiers, as data."""
