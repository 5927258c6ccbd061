"""From videos to clips on disk to batches: knows video files, and of networks only face detectors and depth."""
