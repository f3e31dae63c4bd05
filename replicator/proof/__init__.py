"""Comparison of both sides, and the repair of what differs."""
