"""Measures the front, and what the report shows of it."""
