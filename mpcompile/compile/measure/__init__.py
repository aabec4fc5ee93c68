"""The front on the clock, and what the report shows of it."""
