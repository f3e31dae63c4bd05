"""The data of the demo, and the load on it."""
