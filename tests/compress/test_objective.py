"""Sums of losses by name, and what compares a student with its teacher, against the pure functions."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

from compress import losses
from compress.objective import (
    IMITATIONS,
    Dense,
    EmbeddingCosine,
    EmbeddingKl,
    StudentObjective,
    parse_losses,
)
from compress.teacher_outputs import Layout
from models.detector import Architecture, Detector
from models.outputs import Outputs, example_outputs, outputs
from models.temporal import ClipHead, TemporalSettings
from stage import StageError

LABELS = torch.tensor([0, 1, 1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("classification", {"classification": 1.0}),
        ("classification=0.5,kl=2,margin", {"classification": 0.5, "kl": 2.0, "margin": 1.0}),
        (" kl , dense = 1e-2 ", {"kl": 1.0, "dense": 0.01}),
        (",".join(["classification", *IMITATIONS]), dict.fromkeys(["classification", *IMITATIONS], 1.0)),
    ],
)
def test_a_name_alone_weighs_one(text: str, expected: dict[str, float]) -> None:
    assert parse_losses(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "kl,feature",
            r"--loss 'feature' is unknown: give some of classification, kl, margin, embedding-kl, embedding-cosine, "
            r"dense, distance, angle$",
        ),
        ("kl,", r"--loss '' is unknown: give some of classification, kl, "),
        ("kl,dense,kl=2", r"--loss names kl twice: give each loss once, as kl=2"),
        ("kl=0", r"--loss kl=0: a weight is a number above 0, as in kl=0.5"),
        ("classification,kl=-1", r"--loss kl=-1: a weight is a number above 0"),
        ("kl=two", r"--loss kl=two: a weight is a number above 0"),
        ("kl=nan", r"--loss kl=nan: a weight is a number above 0"),
        ("kl=inf", r"--loss kl=inf: a weight is a number above 0"),
        ("dense,angle=2", r"--loss dense,angle=2 trains no classifier: add one of classification, kl, margin"),
    ],
)
def test_a_sum_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(StageError, match=message):
        parse_losses(text)


def seeded(backbone: str, **more: object) -> Detector:
    torch.manual_seed(0)
    return Detector(Architecture(backbone=backbone, size=64, **more)).eval()


def random_like(said: Outputs, samples: int) -> Outputs:
    """Outputs of the shapes of ``said``, of as many samples, drawn at random."""

    def draw(tensor: Tensor) -> Tensor:
        return torch.randn(samples, *tensor.shape[1:])

    return Outputs(draw(said.logits), draw(said.embedding), tuple(map(draw, said.maps)))


def objective_of(
    detector: Detector, weights: dict[str, float], layout: Layout | None, class_weights: Tensor | None = None
) -> StudentObjective:
    said = example_outputs(detector, frames=1, with_maps="dense" in weights)
    return StudentObjective(detector, weights, class_weights, layout, said)


def test_the_loss_is_the_weighted_sum() -> None:
    detector = seeded("test_byobnet")
    taught = Outputs(torch.randn(3, 2), torch.randn(3, 5))
    layout = Layout(random_like(taught, 1), None)
    pictures, share = torch.randn(3, 3, 64, 64), torch.tensor([2.0, 0.5])
    weights = {"classification": 0.5, "kl": 2.0, "margin": 1.0, "distance": 3.0, "angle": 0.25}
    objective = objective_of(detector, weights, layout, share)
    found = objective(LABELS, pictures, layout.rows(taught))
    embedding = detector.backbone(pictures)
    logits = detector.head(embedding)
    expected = (
        0.5 * losses.classification(logits, LABELS, share)
        + 2 * losses.kl_logits(logits, taught.logits)
        + losses.margin(logits, taught.logits)
        + 3 * losses.relational_distance(embedding, taught.embedding)
        + 0.25 * losses.relational_angle(embedding, taught.embedding)
    )
    torch.testing.assert_close(found, expected)


def test_without_a_teacher_the_loss_is_that_of_labels() -> None:
    detector, pictures = seeded("test_byobnet"), torch.randn(3, 3, 64, 64)
    found = StudentObjective(detector, {"classification": 2.0}, None)(LABELS, pictures)
    torch.testing.assert_close(found, 2 * functional.cross_entropy(detector(pictures), LABELS))


def test_embeddings_are_compared_in_the_student_s_space_by_kl_and_in_the_teacher_s_by_cosine() -> None:
    student, teacher = (Outputs(torch.randn(4, 2), torch.randn(4, width)) for width in (6, 9))
    kl, cosine = EmbeddingKl(student, teacher), EmbeddingCosine(student, teacher)
    with torch.no_grad():
        matrix, shift = kl.project.weight, kl.project.bias
        assert matrix.shape == (6, 9)
        expected = losses.kl_embeddings(student.embedding, teacher.embedding @ matrix.T + shift)
        torch.testing.assert_close(kl(student, teacher), expected)
        assert cosine.project.weight.shape == (9, 6)
        expected = losses.cosine(student.embedding @ cosine.project.weight.T, teacher.embedding)
        torch.testing.assert_close(cosine(student, teacher), expected)


@pytest.mark.parametrize(("own", "other"), [(6, 6), (6, 9), (9, 6)])
def test_the_orthogonal_projector_stays_orthogonal_and_learns(own: int, other: int) -> None:
    """With the optimizer of training: weight decay took PyTorch's householder map to zeros in the first step."""
    torch.manual_seed(0)
    student, teacher = (Outputs(torch.randn(4, 2), torch.randn(4, width)) for width in (own, other))
    imitation = EmbeddingCosine(student, teacher)
    optimizer = torch.optim.AdamW(imitation.parameters(), 1e-2, weight_decay=0.05)
    found = []
    for _ in range(20):
        weight = imitation.project.weight.detach()
        gram = weight.T @ weight if other >= own else weight @ weight.T
        torch.testing.assert_close(gram, torch.eye(min(own, other)), atol=1e-5, rtol=0)
        loss = imitation(student, teacher)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    assert found[-1] < found[0] - 0.1


def pooled_by_hand(stage: Tensor, side: int) -> Tensor:
    """Means of squares of a grid, [N, C, H, W] -> [N, side * side, C]."""
    n, channels, height, _ = stage.shape
    step = height // side
    cells = [
        stage[:, :, y * step : (y + 1) * step, x * step : (x + 1) * step].mean((2, 3))
        for y in range(side)
        for x in range(side)
    ]
    return torch.stack(cells, dim=1).view(n, side * side, channels)


def test_dense_averages_the_student_s_finer_grids_and_takes_the_last_stages() -> None:
    student = Outputs(
        torch.randn(3, 2), torch.randn(3, 4), tuple(torch.randn(3, c, s, s) for c, s in ((5, 16), (6, 8), (7, 4)))
    )
    teacher = Outputs(torch.randn(3, 2), torch.randn(3, 4), tuple(torch.randn(3, 9, s, s) for s in (4, 2)))
    dense = Dense(student, teacher)
    assert [tuple(project.weight.shape) for project in dense.projects] == [(9, 6), (9, 7)]
    parts = []
    for project, own, other, side in zip(dense.projects, student.maps[1:], teacher.maps, (4, 2), strict=True):
        features = pooled_by_hand(own, side) @ project.weight.T + project.bias
        parts.append(losses.cosine(features, other.flatten(2).transpose(1, 2)))
    torch.testing.assert_close(dense(student, teacher), (parts[0] + parts[1]) / 2)


def test_dense_of_clips_compares_the_valid_frames() -> None:
    valid = torch.tensor([[True, True, False], [True, True, True]])
    student, teacher = (
        Outputs(torch.randn(2, 2), torch.randn(2, width), frames=torch.randn(2, 3, width), valid=valid)
        for width in (4, 8)
    )
    dense = Dense(student, teacher)
    clips = zip(dense.projects[0](student.frames), teacher.frames, valid, strict=True)
    expected = torch.stack([losses.cosine(own[counts], other[counts]) for own, other, counts in clips]).mean()
    torch.testing.assert_close(dense(student, teacher), expected)
    spoiled = dataclasses.replace(teacher, frames=teacher.frames.masked_fill(~valid[..., None], 1e9))
    torch.testing.assert_close(dense(student, spoiled), expected)


@pytest.mark.parametrize(("student", "teacher"), [("test_byobnet", "test_vit"), ("test_vit", "test_byobnet")])
def test_every_loss_trains_a_pyramid_by_a_transformer_and_the_other_way(student: str, teacher: str) -> None:
    """All that trains gets a gradient: each projector, and a network whose branches do not start at zero."""
    detector, other = seeded(student).train(), seeded(teacher)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    layout = Layout(example_outputs(other, frames=1, with_maps=True), None)
    objective = objective_of(detector, dict.fromkeys(["classification", *IMITATIONS], 1.0), layout)
    pictures = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        rows = layout.rows(outputs(other, pictures, with_maps=True))
    objective(torch.tensor([0, 1, 1, 0]), pictures, rows).backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None or p.grad.count_nonzero() == 0] == []


def test_a_clip_student_s_loss_is_the_weighted_sum() -> None:
    torch.manual_seed(0)
    settings = TemporalSettings(width=8, feed_forward=8)
    detector = seeded("test_byobnet", temporal=settings)
    head = seeded("test_byobnet", temporal=TemporalSettings(width=12, feed_forward=8)).head
    assert isinstance(head, ClipHead)
    valid = torch.tensor([[True, True, False], [True, True, True], [True, False, True]])
    fused, logits = torch.randn(3, 3, 12), torch.randn(3, 2)
    taught = Outputs(logits, head.pooled(fused, valid), frames=fused, valid=valid)
    layout = Layout(taught, head)
    weights = {"classification": 1.0, "margin": 0.5, "embedding-kl": 1.0, "dense": 2.0}
    said = example_outputs(detector, 3, False)
    objective = StudentObjective(detector, weights, None, layout, said)
    pictures = torch.randn(3, 3, 3, 64, 64)
    own = outputs(detector, pictures, valid)
    kl, dense = objective.imitations["embedding-kl"], objective.imitations["dense"]
    expected = (
        losses.classification(own.logits, LABELS)
        + 0.5 * losses.margin(own.logits, logits)
        + losses.kl_embeddings(own.embedding, kl.project(taught.embedding))
        + 2 * losses.cosine(dense.projects[0](own.frames), fused, valid)
    )
    torch.testing.assert_close(objective(LABELS, pictures, valid, layout.rows(taught)), expected)


@pytest.mark.parametrize("name", IMITATIONS)
def test_the_registry_s_losses_are_scalars_of_float32_under_autocast(name: str) -> None:
    maps: Callable[[int], tuple[Tensor, ...]] = lambda width: (torch.randn(4, width, 4, 4),)  # noqa: E731
    student, teacher = (Outputs(torch.randn(4, 2), torch.randn(4, width), maps(width)) for width in (6, 9))
    imitation = IMITATIONS[name](student, teacher)
    expected = imitation(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        found = imitation(student, teacher)
    assert (found.dtype, found.shape) == (torch.float32, ())
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=2e-2)
