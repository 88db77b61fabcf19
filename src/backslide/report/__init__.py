"""Records in, pages out. No torch: every page can be rebuilt from a run's folder anywhere."""
