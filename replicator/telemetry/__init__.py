"""What runs tell of themselves: logs, without a value of a row."""
