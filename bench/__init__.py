"""Benchmarks: each module but ``report`` has ``run(report)``. 'make bench' runs all of them."""
