"""Runs real daemons and real vLLM engines for the demo, the end-to-end tests, the benchmarks."""
