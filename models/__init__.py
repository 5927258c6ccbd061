"""The networks and their checkpoints: knows tensors, and no files but a run's folder."""
