"""The learning rate against its closed form."""

import math

import pytest

from compress.schedule import Schedule


def test_learning_rate_warms_up_and_falls_as_a_cosine():
    schedule = Schedule(epochs=1, warmup_share=0.1)
    factors = [schedule.factor(step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[55] == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert factors[99] < 0.001
