"""A local HTTP server that speaks the exchanges' wire formats, for demo, tests and benchmarks."""
