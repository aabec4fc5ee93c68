"""Tests of the cost model; a package, because `test_workload.py` is also the name of a file above."""
