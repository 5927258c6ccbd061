"""Measurements of Pocketproof itself: one script, one table, one line of JSON each."""
