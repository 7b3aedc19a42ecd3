"""What the benchmarks are made of; none of these is one itself."""
