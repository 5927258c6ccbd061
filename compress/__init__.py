"""Teach, distill, quantize and evaluate: turns runs into runs."""
