"""Policies by name, against the libraries that they are of."""

import functools
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import auto_augment, create_transform
from torchvision.transforms import v2

from data.augment import (
    augment,
    check_policy,
)
from data.policies import TORCHVISION, apply_policy
from stage import StageError
from tests.data.conftest import SIZE, Pictures

TIMM_POLICIES = ("rand-m9-mstd0.5", "rand-m7-n3-inc1-tweights", "augmix-m5-w4-d2", "original-mstd0.5", "v0")


@pytest.mark.parametrize("policy", TORCHVISION)
def test_torchvision_gives_each_frame_the_same_draw(clip: NDArray[np.uint8], policy: str) -> None:
    state = torch.get_rng_state()
    changed = [apply_policy(policy, clip, seed) for seed in range(8)]
    assert torch.equal(torch.get_rng_state(), state)
    assert len({frames.tobytes() for frames in changed}) >= 6
    for seed, frames in enumerate(changed):
        for frame, picture in zip(frames, clip, strict=True):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                alone = getattr(v2, policy)()(torch.from_numpy(picture).permute(2, 0, 1))
            np.testing.assert_array_equal(frame, alone.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("policy", TIMM_POLICIES)
def test_timm_gives_each_frame_the_draw_of_its_training_pipeline(clip: NDArray[np.uint8], policy: str) -> None:
    pipeline = create_transform(SIZE, is_training=True, auto_augment=policy, interpolation="random")
    kinds = (auto_augment.RandAugment, auto_augment.AutoAugment, auto_augment.AugMixAugment)
    (transform,) = [step for step in pipeline.transforms if isinstance(step, kinds)]
    state, legacy = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    changed = [apply_policy(policy, clip, seed) for seed in range(8)]
    assert random.getstate() == state
    np.testing.assert_array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002
    assert len({frames.tobytes() for frames in changed}) >= 4
    for seed, frames in enumerate(changed):
        for frame, picture in zip(frames, clip, strict=True):
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            np.testing.assert_array_equal(frame, np.asarray(transform(Image.fromarray(picture))))


@pytest.mark.parametrize("policy", ["v0", "rand-m1", "rand-m10-inc1"])
def test_draws_that_pillow_cannot_make_are_drawn_again(clip: NDArray[np.uint8], policy: str) -> None:
    (transform,) = [
        step
        for step in create_transform(SIZE, is_training=True, auto_augment=policy, interpolation="random").transforms
        if isinstance(step, (auto_augment.RandAugment, auto_augment.AutoAugment))
    ]

    def by_timm(seed: int) -> NDArray[np.uint8] | None:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            return np.asarray(transform(Image.fromarray(clip[0])))
        except ValueError:
            return None

    expected = [by_timm(seed) for seed in range(100)]
    refused = [seed for seed in range(99) if expected[seed] is None]
    assert refused
    for seed in refused:
        following = next(picture for picture in expected[seed:] if picture is not None)
        np.testing.assert_array_equal(apply_policy(policy, clip, seed)[0], following)


@pytest.mark.parametrize("policy", ["TrivialAugmentWide", "rand-m9-mstd0.5"])
def test_views_of_a_named_policy_are_deterministic(clip: NDArray[np.uint8], policy: str) -> None:
    first, again = ([augment({"rgb": clip}, policy, 0, "clip", view)["rgb"] for view in range(8)] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[0], clip)
    assert len({frames.tobytes() for frames in first}) >= 5


@pytest.mark.parametrize("policy", ["TrivialAugmentWide", "AugMix", "rand-m9-mstd0.5", "augmix-m5-w3"])
def test_threads_that_read_ahead_draw_as_one_would(clip: NDArray[np.uint8], policy: str) -> None:
    draw = functools.partial(apply_policy, policy, clip)
    alone = [draw(seed) for seed in range(24)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(draw, range(24)))
    finally:
        sys.setswitchinterval(interval)
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("policy", ["randaugment", "rand-x9", "rand-m9-foo", "rand-tnone", "v1", "", "ten-m9"])
def test_an_unknown_policy_is_refused_with_the_known_ones(pictures: Pictures, policy: str) -> None:
    with pytest.raises(
        StageError, match=rf"--augment {policy} is not known: take ten, RandAugment, .*rand-m9-mstd0\.5"
    ):
        augment(pictures, policy, 0, "clip", 0)


@pytest.mark.parametrize("policy", [*TORCHVISION, *TIMM_POLICIES])
def test_a_policy_for_rgb_is_refused_beside_other_modalities(policy: str) -> None:
    check_policy(policy, ["rgb"])
    with pytest.raises(StageError, match=rf"--augment {policy} mixes .* not depth, flow: take --augment ten"):
        check_policy(policy, ["rgb", "depth", "flow"])


def test_ten_fits_every_modality() -> None:
    check_policy("ten", ["rgb", "depth", "flow"])


@pytest.mark.parametrize("policy", ["rand-n99999999", "augmix-d101"])
def test_numbers_that_would_take_for_ever_are_refused(policy: str) -> None:
    with pytest.raises(StageError, match=rf"--augment {policy}: numbers of a policy are at most 100"):
        check_policy(policy, ["rgb"])
    check_policy("rand-m9-mstd101", ["rgb"])  # timm's word for magnitudes that are all alike


@pytest.mark.parametrize("policy", ["rand-m9.5", "augmix-m2.5", "rand-n99-tweights"])
def test_numbers_that_timm_cannot_take_are_refused_in_one_line(clip: NDArray[np.uint8], policy: str) -> None:
    with pytest.raises(StageError, match=rf"timm refuses --augment {policy}: .+: take other numbers"):
        apply_policy(policy, clip, 0)
