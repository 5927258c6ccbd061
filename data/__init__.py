"""Videos to clips on disk to batches: knows video files, and no networks but face detectors and depth."""
