"""Benchmarks: each module but ``report`` has ``run(report)``; 'make bench' runs all. ``parts`` is what they use."""
