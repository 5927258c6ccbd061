"""Bundles and runs to a report: one runner per runtime, each measured in a fresh process."""
