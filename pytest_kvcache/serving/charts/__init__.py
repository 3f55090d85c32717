"""Values files of Helm charts, made from the profiles and tiers that a run boots by itself."""
