"""The observer of least squared error, against a search over true rounding errors."""

import pytest
import torch

from compress.observers import OBSERVERS, Candidates, Clamped, MseObserver

INT8 = {"dtype": torch.int8, "quant_min": -128, "quant_max": 127, "qscheme": torch.per_tensor_affine, "eps": 2**-12}


def _error(values: torch.Tensor, observer: torch.nn.Module) -> float:
    scale, zero_point = observer.calculate_qparams()
    rounded = torch.fake_quantize_per_tensor_affine(values, scale, zero_point.int(), -128, 127)
    return float((rounded - values).square().mean())


@pytest.fixture
def heavy_tailed() -> torch.Tensor:
    normal = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    return normal.sign() * normal.abs() ** 2.5


def test_mse_observer_errs_as_little_as_the_best_of_many_ranges(heavy_tailed):
    observer = MseObserver(**INT8)
    for part in heavy_tailed.split(5_000):
        observer(part)
    low, high = float(heavy_tailed.min()), float(heavy_tailed.max())
    least = min(
        _error(heavy_tailed, _Fixed(low * a, high * b))
        for a in torch.linspace(0.05, 1, 40).tolist()
        for b in torch.linspace(0.05, 1, 40).tolist()
    )
    assert _error(heavy_tailed, observer) <= 1.05 * least
    minmax = OBSERVERS["minmax"](**INT8)
    minmax(heavy_tailed)
    assert _error(heavy_tailed, observer) < 0.98 * _error(heavy_tailed, minmax)


class _Fixed(torch.nn.Module):
    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.scale = torch.tensor((high - low) / 255)
        self.zero_point = (-128 - torch.tensor(low) / self.scale).round()

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scale, self.zero_point


@pytest.mark.parametrize("name", OBSERVERS)
def test_every_observer_holds_what_lies_close_together(name):
    values = torch.linspace(0, 3, 1000)
    observer = OBSERVERS[name](**INT8)
    observer(values)
    assert _error(values, observer) < (3 / 255) ** 2 / 6


@pytest.mark.parametrize("name", OBSERVERS)
def test_a_tensor_that_is_always_zero_has_a_scale(name):
    observer = OBSERVERS[name](**INT8)
    observer(torch.zeros(100))
    scale, zero_point = observer.calculate_qparams()
    assert float(scale) > 0 and -128 <= int(zero_point) <= 127


def test_candidates_see_what_a_clamp_leaves():
    candidates = Candidates(OBSERVERS["histogram"](**INT8))
    values = torch.linspace(-20, 20, 1000)
    assert torch.equal(Clamped(candidates, 0.0, 6.0)(values), values)
    assert set(candidates.observers) == set(OBSERVERS)
    for observer in candidates.observers.values():
        scale, zero_point = observer.calculate_qparams()
        assert float(scale) * 255 <= 6.01 and int(zero_point) == -128
