"""Backends that run a segment's graph through torch: eager, the oracle, and inductor."""
