"""Runs plans: one loop, one view of every model format, and in words why a call left the fused path."""
