"""Choosing operating points on held-out texts."""
