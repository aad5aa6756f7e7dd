"""Benchmarks of fusum against captum and against a hand-written loop (see README.md)."""
