"""Benchmarks. Scripts run by path (`python benchmarks/models.py`); `benchmarks.peers` is a package of its own."""
