"""Runs to a bundle; one file per runtime; load and run an artifact, gate it, detect with it."""
