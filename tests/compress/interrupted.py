"""A training that is interrupted, for the tests of this room."""

from compress import training


class InterruptedAfter:
    """Writes checkpoints until one too many is asked for."""

    def __init__(self, saves: int) -> None:
        self.left, self.save = saves, training.save_checkpoint

    def __call__(self, *checkpoint: object) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.save(*checkpoint)
