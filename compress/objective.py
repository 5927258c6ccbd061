"""What a student is trained for: a weighted sum of losses, chosen by name."""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from compress import losses
from compress.teacher_outputs import Layout
from models.detector import Detector
from models.outputs import Outputs, on_grids, outputs
from stage import WrongArgument

CLASSIFICATION = "classification"
Loss = Callable[[Tensor, Tensor], Tensor]
"""What the student says and what the teacher says, float [N, ...], to a scalar."""


class Imitation(nn.Module):
    """One loss between what student and teacher say, with what it learns to compare them."""

    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the loss, a scalar."""
        raise NotImplementedError


class Compared(Imitation):
    """A loss between one thing that both say; there is nothing to learn."""

    def __init__(self, loss: Loss, thing: Callable[[Outputs], Tensor]) -> None:
        super().__init__()
        self._loss, self._thing = loss, thing

    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the loss."""
        return self._loss(self._thing(student), self._thing(teacher))


def _logits(said: Outputs) -> Tensor:
    return said.logits


def _embedding(said: Outputs) -> Tensor:
    """Of a batch, or of its part where there are several (--accumulate, processes)."""
    return said.embedding


class EmbeddingKl(Imitation):
    """KL divergence between embeddings, the teacher's after a linear projector."""

    def __init__(self, student: Outputs, teacher: Outputs) -> None:
        super().__init__()
        self.project = nn.Linear(teacher.embedding.shape[1], student.embedding.shape[1])

    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the loss."""
        return losses.kl_embeddings(student.embedding, self.project(teacher.embedding))


class Orthonormal(nn.Module):
    """A matrix to its orthonormal factor: rows, or columns where there are fewer, of length 1 at right angles.

    By QR. Of PyTorch's own maps, ``householder`` gives zeros once weight decay moves its diagonal off the integers, and
    ``cayley`` takes ten times as long (1.3 s a step from 384 to 1280 dimensions on one core).
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Return the factor, of the shape of ``weight``."""
        wide = weight.shape[0] < weight.shape[1]
        factor: Tensor = torch.linalg.qr(weight.T if wide else weight)[0]
        return factor.T if wide else factor


class EmbeddingCosine(Imitation):
    """Cosine distance between embeddings, the student's after an orthogonal projector."""

    def __init__(self, student: Outputs, teacher: Outputs) -> None:
        super().__init__()
        self.project = nn.Linear(student.embedding.shape[1], teacher.embedding.shape[1], bias=False)
        nn.utils.parametrize.register_parametrization(self.project, "weight", Orthonormal())

    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the loss."""
        return losses.cosine(self.project(student.embedding), teacher.embedding)


class Dense(Imitation):
    """Cosine distance at each position of the feature maps of each stage, or at each frame of a clip.

    The student's features go through a linear projector of their stage; what it says of a finer grid than the
    teacher's is averaged.
    """

    def __init__(self, student: Outputs, teacher: Outputs) -> None:
        super().__init__()
        pairs = zip(_positions(student, teacher), _positions(teacher, teacher), strict=True)
        self.projects = nn.ModuleList(nn.Linear(own.shape[-1], other.shape[-1]) for own, other in pairs)

    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the loss, the mean over stages."""
        own, other = _positions(student, teacher), _positions(teacher, teacher)
        parts = [
            losses.cosine(project(s), t, student.valid) for project, s, t in zip(self.projects, own, other, strict=True)
        ]
        return torch.stack(parts).mean()


def _positions(said: Outputs, grids_of: Outputs) -> list[Tensor]:
    """Return the features of positions, float [N, P, C] of each stage on the grids of ``grids_of``, or of frames."""
    if said.frames is not None:
        return [said.frames]
    return [stage.flatten(2).transpose(1, 2) for stage in on_grids(said.maps, grids_of.grids)]


IMITATIONS: dict[str, Callable[[Outputs, Outputs], Imitation]] = {
    "kl": lambda *_: Compared(losses.kl_logits, _logits),
    "margin": lambda *_: Compared(losses.margin, _logits),
    "embedding-kl": EmbeddingKl,
    "embedding-cosine": EmbeddingCosine,
    "dense": Dense,
    "distance": lambda *_: Compared(losses.relational_distance, _embedding),
    "angle": lambda *_: Compared(losses.relational_angle, _embedding),
}
"""By name, how a loss is made for what student and teacher say of one sample."""
RELATIONS = ("distance", "angle")
FEWEST_RELATED = 4
"""Samples that ``RELATIONS`` need: two are always the same distance apart, in units of their mean distance."""
OF_LOGITS = (CLASSIFICATION, "kl", "margin")
"""Losses that train the student's classifier: a sum needs one of them."""


def check_related(names: Iterable[str], samples: int) -> None:
    """Raise StageError if a loss relates samples, and sees too few of them at once."""
    if samples < FEWEST_RELATED and set(names) & set(RELATIONS):
        raise WrongArgument(
            f"--loss {' and '.join(RELATIONS)} compare the samples of a part of a batch, which here has {samples}: "
            f"give a --batch-size of which {FEWEST_RELATED} are in each"
        )


def parse_losses(text: str) -> dict[str, float]:
    """Return weights by name of ``classification=0.5,kl,dense=2``; a name alone weighs 1.

    Raises StageError for an unknown name, naming the known ones, and for a sum that cannot train a classifier.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (word.strip() for word in part.partition("="))
        if name != CLASSIFICATION and name not in IMITATIONS:
            raise WrongArgument(f"--loss {name!r} is unknown: give some of {', '.join([CLASSIFICATION, *IMITATIONS])}")
        if name in weights:
            raise WrongArgument(f"--loss names {name} twice: give each loss once, as {name}=2")
        try:
            weights[name] = float(number) if number else 1.0
        except ValueError:
            weights[name] = math.nan
        if not 0 < weights[name] < math.inf:
            raise WrongArgument(f"--loss {part.strip()}: a weight is a number above 0, as in {name}=0.5")
    if not weights.keys() & set(OF_LOGITS):
        raise WrongArgument(f"--loss {text} trains no classifier: add one of {', '.join(OF_LOGITS)}")
    return weights


class StudentObjective(nn.Module):
    """The weighted sum of losses of a student, a scalar; holds all that trains.

    ``student``, ``teacher``: what both say of one sample, by whose shapes projectors are made.
    """

    def __init__(
        self,
        detector: Detector,
        weights: Mapping[str, float],
        class_weights: Tensor | None,
        layout: Layout | None = None,
        student: Outputs | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.class_weights: Tensor | None
        self.student, self._weights, self._layout = detector, dict(weights), layout
        named = [name for name in weights if name != CLASSIFICATION]
        assert not named or (layout and student), "nobody to imitate"
        pairs = {name: IMITATIONS[name](student, layout.example) for name in named} if layout and student else {}
        self.imitations = nn.ModuleDict(pairs)

    def forward(self, labels: Tensor, pictures: Tensor, *rest: Tensor) -> Tensor:
        """Return the mean loss.

        labels: int64 [B]; pictures: as ``Detector`` takes them; then, of clips, their valid frames, bool [B, T]; then,
        with a teacher, what it says (``TeacherOutputs``).
        """
        valid = rest[0] if self.student.architecture.per == "clip" else None
        said = outputs(self.student, pictures, valid, with_maps="dense" in self._weights)
        total = torch.zeros((), device=labels.device)
        if CLASSIFICATION in self._weights:
            loss = losses.classification(said.logits, labels, self.class_weights)
            total = total + self._weights[CLASSIFICATION] * loss
        if self._layout:
            taught = self._layout.outputs(rest[-1], valid)
            for name, imitation in self.imitations.items():
                total = total + self._weights[name] * imitation(said, taught)
        return total
