"""Backends that run a segment's graph through torch: eager, which others are checked against, and inductor."""
