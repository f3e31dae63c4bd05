"""The listener: where its stream begins, and what follows it."""
