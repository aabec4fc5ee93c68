"""Tests of the search; a package, because `test_front.py` is also the name of a file above."""
