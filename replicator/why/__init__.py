"""One row looked at on both sides, and the reason why it is as it is."""
