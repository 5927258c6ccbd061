"""The training objective of a student: a weighted sum of losses, chosen by name."""

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
"""From the student's and the teacher's output, float [N, ...] each, to a scalar."""


class Imitation(nn.Module):
    """A loss between the outputs of student and teacher, with its projectors, if it has any."""

    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the loss, a scalar."""
        raise NotImplementedError


class Compared(Imitation):
    """A loss between one output of both, without projectors. ``output`` selects it."""

    def __init__(self, loss: Loss, output: Callable[[Outputs], Tensor]) -> None:
        super().__init__()
        self._loss, self._output = loss, output

    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the loss."""
        return self._loss(self._output(student), self._output(teacher))


def _logits(model_outputs: Outputs) -> Tensor:
    return model_outputs.logits


def _embedding(model_outputs: Outputs) -> Tensor:
    """Return the embeddings of a batch, or of one of its parts (--accumulate, several processes)."""
    return model_outputs.embedding


class EmbeddingKl(Imitation):
    """KL divergence between embeddings, the teacher's after a linear projector."""

    def __init__(self, student: Outputs, teacher: Outputs) -> None:
        super().__init__()
        self.project = nn.Linear(teacher.embedding.shape[1], student.embedding.shape[1])

    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the loss."""
        return losses.kl_embeddings(student.embedding, self.project(teacher.embedding))


class Orthonormal(nn.Module):
    """Maps a matrix to its orthonormal factor: its rows, or its columns if these are fewer, become orthonormal.

    Computed by QR. Of PyTorch's own maps, ``householder`` gives zeros once weight decay moves its diagonal off the
    integers, and ``cayley`` takes ten times as long (1.3 s a step from 384 to 1280 dimensions on one core).
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Return the factor, float of the shape of ``weight``."""
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
    """Cosine distance at each position of each stage's feature maps, or at each frame of a clip.

    The student's features pass a linear projector per stage; maps on finer grids than the teacher's are averaged.
    """

    def __init__(self, student: Outputs, teacher: Outputs) -> None:
        super().__init__()
        pairs = zip(_positions(student, teacher), _positions(teacher, teacher), strict=True)
        self.projects = nn.ModuleList(nn.Linear(s.shape[-1], t.shape[-1]) for s, t in pairs)

    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the loss, the mean over stages."""
        student_stages, teacher_stages = _positions(student, teacher), _positions(teacher, teacher)
        stages = zip(self.projects, student_stages, teacher_stages, strict=True)
        return torch.stack([losses.cosine(project(s), t, student.valid) for project, s, t in stages]).mean()


def _positions(model_outputs: Outputs, grids_of: Outputs) -> list[Tensor]:
    """Return each stage's features by position, float [N, P, C], on the grids of ``grids_of``; of clips, by frame."""
    if model_outputs.frames is not None:
        return [model_outputs.frames]
    return [stage.flatten(2).transpose(1, 2) for stage in on_grids(model_outputs.maps, grids_of.grids)]


IMITATIONS: dict[str, Callable[[Outputs, Outputs], Imitation]] = {
    "kl": lambda *_: Compared(losses.kl_logits, _logits),
    "margin": lambda *_: Compared(losses.margin, _logits),
    "embedding-kl": EmbeddingKl,
    "embedding-cosine": EmbeddingCosine,
    "dense": Dense,
    "distance": lambda *_: Compared(losses.relational_distance, _embedding),
    "angle": lambda *_: Compared(losses.relational_angle, _embedding),
}
"""By name, the function that creates a loss from example outputs of student and teacher for one sample."""
RELATIONS = ("distance", "angle")
FEWEST_RELATED = 4
"""Minimum of samples for ``RELATIONS``: the distance of two samples, divided by their mean distance, is always 1."""
OF_LOGITS = (CLASSIFICATION, "kl", "margin")
"""Losses that train the student's classifier; each sum must include one of them."""


def check_related(names: Iterable[str], samples: int) -> None:
    """Raise WrongArgument if a loss that relates samples gets fewer than FEWEST_RELATED at once."""
    if samples < FEWEST_RELATED and set(names) & set(RELATIONS):
        raise WrongArgument(
            f"--loss {' and '.join(RELATIONS)} compare the samples of a part of a batch, which here has {samples}: "
            f"give a --batch-size of which {FEWEST_RELATED} are in each"
        )


def parse_losses(text: str) -> dict[str, float]:
    """Return the weights by name of losses as in ``classification=0.5,kl,dense=2``; the default weight is 1.

    Raises WrongArgument for an unknown or repeated name, for a weight that is not above 0, and for a sum that cannot
    train a classifier.
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
    """The weighted sum of a student's losses, a scalar; holds all trained modules.

    ``layout``: of the teacher's outputs, with an example; ``student``: example outputs of the student for one sample.
    Their shapes decide those of projectors.
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
        self.register_buffer("class_weights", class_weights)
        self.class_weights: Tensor | None
        self.student, self._weights, self._layout = detector, dict(weights), layout
        imitated = [name for name in weights if name != CLASSIFICATION]
        assert not imitated or (layout and student), "nobody to imitate"
        self.imitations = nn.ModuleDict()
        if layout and student:
            self.imitations.update({name: IMITATIONS[name](student, layout.example) for name in imitated})

    def forward(self, labels: Tensor, pictures: Tensor, *rest: Tensor) -> Tensor:
        """Return the mean loss.

        labels: int64 [B]; pictures: as ``Detector`` takes them; rest: for clips, their valid frames, bool [B, T]; with
        a teacher, the rows of its outputs (``TeacherOutputs``).
        """
        valid = rest[0] if self.student.architecture.per == "clip" else None
        student = outputs(self.student, pictures, valid, with_maps="dense" in self._weights)
        total = torch.zeros((), device=labels.device)
        if CLASSIFICATION in self._weights:
            loss = losses.classification(student.logits, labels, self.class_weights)
            total = total + self._weights[CLASSIFICATION] * loss
        if self._layout:
            teacher = self._layout.outputs(rest[-1], valid)
            for name, imitation in self.imitations.items():
                total = total + self._weights[name] * imitation(student, teacher)
        return total
