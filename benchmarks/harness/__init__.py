"""What the benchmarks share: records, timing, worker processes, the paper's figures."""
