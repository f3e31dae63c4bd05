"""The configuration: what may stand in it, where it is read from, and the file that shows it whole."""
