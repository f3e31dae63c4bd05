"""Runs: tables read in one snapshot of the source, and written."""
