"""Losses against closed forms and plain loops, and their gradients."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress import losses

Array = NDArray[np.float64]


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _kl(teacher: Array, student: Array) -> float:
    p, q = _softmax(teacher), _softmax(student)
    return (p * (np.log(p) - np.log(q))).sum(-1).mean()


def _huber(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


@pytest.fixture
def pair() -> tuple[Array, Array]:
    """Logits of a student and a teacher."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 2)), rng.normal(size=(5, 2)) * 3


@pytest.fixture
def embeddings() -> tuple[Array, Array]:
    """Embeddings of a student and of a wider teacher."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(5, 3)), rng.normal(size=(5, 7)) * 4


def test_kl_on_logits_is_the_divergence_of_softened_classes(pair):
    student, teacher = pair
    expected = 4.0 * _kl(teacher / 2, student / 2)
    actual = losses.kl_logits(torch.tensor(student), torch.tensor(teacher))
    assert float(actual) == pytest.approx(expected, rel=1e-5)


def test_kl_on_embeddings_is_the_divergence_of_their_softmax():
    rng = np.random.default_rng(1)
    student, teacher = rng.normal(size=(4, 16)), rng.normal(size=(4, 16))
    actual = losses.kl_embeddings(torch.tensor(student), torch.tensor(teacher))
    assert float(actual) == pytest.approx(_kl(teacher, student), rel=1e-5)


@pytest.mark.parametrize("loss", [losses.kl_logits, losses.kl_embeddings])
def test_divergence_of_equals_is_zero_and_of_others_positive(loss, pair):
    student, teacher = map(torch.tensor, pair)
    assert float(loss(teacher, teacher)) == pytest.approx(0.0, abs=1e-6)
    assert float(loss(student, teacher)) > 0.0


def test_classification_is_minus_the_log_of_the_label_s_share(pair):
    logits, labels = pair[0], np.array([0, 1, 1, 0, 1])
    share = -np.log(_softmax(logits)[np.arange(5), labels])
    given = torch.tensor(logits), torch.tensor(labels)
    assert float(losses.classification(*given)) == pytest.approx(share.mean(), rel=1e-12)
    weighed = losses.classification(*given, torch.tensor([3.0, 0.5], dtype=torch.float64))
    assert float(weighed) == pytest.approx((np.array([3.0, 0.5])[labels] * share).mean(), rel=1e-12)


def test_gradient_of_the_divergence_is_the_difference_of_the_classes(pair):
    student = torch.tensor(pair[0], requires_grad=True)
    losses.kl_logits(student, torch.tensor(pair[1])).backward()
    expected = 2.0 * (_softmax(pair[0] / 2) - _softmax(pair[1] / 2)) / 5
    np.testing.assert_allclose(student.grad.numpy(), expected, atol=1e-5)


def test_margin_is_a_parabola_near_the_teacher_s_and_a_line_beyond(pair):
    apart = [(s[1] - s[0]) - (t[1] - t[0]) for s, t in zip(*pair, strict=True)]
    assert {abs(x) < 1 for x in apart} == {True, False}
    actual = losses.margin(*map(torch.tensor, pair))
    assert float(actual) == pytest.approx(np.mean([_huber(x) for x in apart]), rel=1e-12)


def _one_minus_cosine(a: Array, b: Array) -> float:
    return 1 - a @ b / np.sqrt((a @ a) * (b @ b))


def test_cosine_is_the_mean_over_what_is_valid_of_each_sample():
    rng = np.random.default_rng(2)
    student, teacher = rng.normal(size=(3, 4, 6)), rng.normal(size=(3, 4, 6))
    each = np.array([[_one_minus_cosine(student[n, i], teacher[n, i]) for i in range(4)] for n in range(3)])
    given = torch.tensor(student), torch.tensor(teacher)
    assert float(losses.cosine(*given)) == pytest.approx(each.mean(), rel=1e-12)
    valid = np.array([[1, 1, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]], np.bool_)
    expected = np.mean([own[counts].mean() for own, counts in zip(each, valid, strict=True)])
    assert float(losses.cosine(*given, torch.tensor(valid))) == pytest.approx(expected, rel=1e-12)


def test_half_the_squared_distance_of_features_of_length_one_is_their_cosine_loss():
    a, b = (torch.nn.functional.normalize(torch.randn(4, 9, dtype=torch.float64), dim=-1) for _ in range(2))
    torch.testing.assert_close(losses.cosine(a, b), (a - b).square().sum(-1).mean() / 2)


def _relative_distances(points: Array) -> dict[tuple[int, int], float]:
    """RKD, equations 5 and 6: distances of pairs, divided by their mean over the batch's pairs."""
    pairs = list(itertools.permutations(range(len(points)), 2))
    apart = {(i, j): float(np.sqrt(np.sum((points[i] - points[j]) ** 2))) for i, j in pairs}
    mean = sum(apart.values()) / len(pairs)
    return {pair: distance / mean for pair, distance in apart.items()}


def test_relational_distance_is_that_of_rkd_pair_by_pair(embeddings):
    """The mean is over all N x N pairs: a frame is no distance from itself under either."""
    student, teacher = map(_relative_distances, embeddings)
    expected = sum(_huber(student[pair] - teacher[pair]) for pair in student) / 5**2
    actual = losses.relational_distance(*map(torch.tensor, embeddings))
    assert float(actual) == pytest.approx(expected, rel=1e-9)


def _angle_at(points: Array, j: int, i: int, k: int) -> float:
    """RKD, equation 8: the cosine of the angle at j between i and k."""
    a, b = points[i] - points[j], points[k] - points[j]
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_relational_angle_is_that_of_rkd_triple_by_triple(embeddings):
    """The mean is over all N^3 triples: one with j twice has no angle, one with i twice has cosine 1, under both."""
    triples = itertools.permutations(range(5), 3)
    student, teacher = embeddings
    expected = sum(_huber(_angle_at(student, *three) - _angle_at(teacher, *three)) for three in triples) / 5**3
    actual = losses.relational_angle(*map(torch.tensor, embeddings))
    assert float(actual) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", [losses.relational_distance, losses.relational_angle])
def test_relations_do_not_change_under_rotation_scaling_and_shift(loss, embeddings):
    points, others = map(torch.tensor, embeddings)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    moved = 2.5 * points @ turn + 7
    assert float(loss(moved, points)) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(loss(moved, others), loss(points, others))


@pytest.mark.parametrize("loss", [losses.relational_distance, losses.relational_angle])
@pytest.mark.parametrize("frames", [[0], [0, 0], [0, 1, 1, 2]])
def test_relations_of_equal_embeddings_have_finite_gradients(loss, frames, embeddings):
    """A repeated frame is no distance from itself, where the slope of a root is infinite."""
    student = torch.tensor(embeddings[0][frames], requires_grad=True)
    found = loss(student, torch.tensor(embeddings[1][frames]))
    found.backward()
    assert found.isfinite()
    assert student.grad.isfinite().all()


LABELS = torch.tensor([0, 1, 1, 0, 1])
VALID = torch.tensor([[True, False], [True, True], [False, True], [True, True], [False, False]])
LOSSES: dict[str, tuple[Callable[..., Tensor], int, int]] = {
    "kl": (losses.kl_logits, 2, 2),
    "margin": (losses.margin, 2, 2),
    "embedding-kl": (losses.kl_embeddings, 6, 6),
    "cosine": (losses.cosine, 6, 6),
    "cosine of valid": (
        lambda student, teacher: losses.cosine(student.view(5, 2, 3), teacher.view(5, 2, 3), VALID),
        6,
        6,
    ),
    "distance": (losses.relational_distance, 4, 6),
    "angle": (losses.relational_angle, 4, 6),
    "classification": (lambda logits, _: losses.classification(logits, LABELS), 2, 2),
    "classification, weighed": (
        lambda logits, _: losses.classification(logits, LABELS, torch.tensor([2.0, 0.5]).to(logits)),
        2,
        2,
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    """Of the teacher's side too: of embedding-kl, it holds what is learned."""
    loss, of_student, of_teacher = LOSSES[name]
    rng = torch.Generator().manual_seed(3)
    given = [torch.randn(5, width, dtype=torch.float64, generator=rng) for width in (of_student, of_teacher)]
    assert torch.autograd.gradcheck(loss, [tensor.requires_grad_() for tensor in given])


@pytest.mark.parametrize("name", [name for name in LOSSES if not name.startswith("classification,")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_even_under_autocast(name, dtype):
    loss, of_student, of_teacher = LOSSES[name]
    rng = torch.Generator().manual_seed(4)
    halves = [torch.randn(5, width, generator=rng).to(dtype) for width in (of_student, of_teacher)]
    expected = loss(*(half.double() for half in halves))
    for enabled in (False, True):
        with torch.autocast("cpu", dtype, enabled=enabled):
            found = loss(*halves)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)
