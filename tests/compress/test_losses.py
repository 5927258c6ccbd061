"""Losses against closed forms, and their gradients."""

import numpy as np
import pytest
import torch

from compress import losses


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _kl(teacher, student):
    p, q = _softmax(teacher), _softmax(student)
    return (p * (np.log(p) - np.log(q))).sum(-1).mean()


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 2)), rng.normal(size=(5, 2)) * 3


def test_kl_on_logits_is_the_divergence_of_softened_classes(pair):
    student, teacher = pair
    expected = 4.0 * _kl(teacher / 2, student / 2)
    actual = losses.kl_logits(torch.tensor(student), torch.tensor(teacher), temperature=2.0)
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
    expected = -np.log(_softmax(logits)[np.arange(5), labels]).mean()
    assert float(losses.classification(torch.tensor(logits), torch.tensor(labels))) == pytest.approx(expected, rel=1e-5)


def test_gradient_of_the_divergence_is_the_difference_of_the_classes(pair):
    student = torch.tensor(pair[0], requires_grad=True)
    losses.kl_logits(student, torch.tensor(pair[1]), temperature=2.0).backward()
    expected = 2.0 * (_softmax(pair[0] / 2) - _softmax(pair[1] / 2)) / 5
    np.testing.assert_allclose(student.grad.numpy(), expected, atol=1e-5)
