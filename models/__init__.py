"""The networks and their checkpoints: knows tensors, a run's folder, and the weights that a run starts from."""
