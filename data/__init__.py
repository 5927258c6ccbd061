"""From videos to clips on disk to batches: knows video files, and of networks face detectors, depth and flow alone."""
