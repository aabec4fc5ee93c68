"""What `optimize` does, stage by stage."""
