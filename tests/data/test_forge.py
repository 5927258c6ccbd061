"""Self-blended forgeries, against closed forms where the mask is one and untouched pixels where it is zero."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from data.forge import REACH, Forgery

BOX = (60.0, 40.0, 160.0, 140.0)
MIDDLE = (slice(75, 105), slice(95, 125))


@pytest.fixture
def frame() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (200, 240, 3)).astype(np.uint8)


def draws(count: int) -> list[Forgery]:
    return [Forgery.draw(np.random.default_rng(seed)) for seed in range(count)]


@pytest.mark.parametrize("box", [BOX, (-20, -30, 50, 60), (200, 150, 300, 260), (-50, -50, 400, 400)])
def test_identity_changes_no_pixel(frame: NDArray[np.uint8], box: tuple[float, ...]) -> None:
    identity = Forgery().jitter(np.random.default_rng(0))
    np.testing.assert_array_equal(identity.blend(frame, box), frame)


def test_a_drawn_forgery_changes_the_face_and_nothing_beyond_its_reach(frame: NDArray[np.uint8]) -> None:
    reach = REACH * 100
    outside = np.ones(frame.shape[:2], bool)
    outside[int(40 - reach) : int(140 + reach), int(60 - reach) : int(160 + reach)] = False
    for forgery in draws(20):
        changed = (forgery.blend(frame, BOX) != frame).any(axis=-1)
        assert not changed[outside].any()
        assert changed[MIDDLE].mean() > 0.9


def test_a_weakened_forgery_changes_as_much_less(frame: NDArray[np.uint8]) -> None:
    """Colour alone, far from the ends of the range, within the mask: the change is the strength's share."""
    grey = np.full_like(frame, 120)
    coarse = Forgery(gain=(1.2, 0.9, 1.1), opacity=1.0)
    change = coarse.blend(grey, BOX).astype(float) - 120
    half = coarse.weakened(0.5).blend(grey, BOX).astype(float) - 120
    np.testing.assert_allclose(half[MIDDLE], change[MIDDLE] / 2, atol=1)
    assert coarse.weakened(1.0) == replace(coarse, gain=pytest.approx(coarse.gain))
    np.testing.assert_array_equal(coarse.weakened(0.0).blend(frame, BOX), frame)


def test_forgeries_are_drawn_from_the_weakest_strength_on() -> None:
    coarse, drawn = (
        [Forgery.draw(np.random.default_rng(seed), weakest) for seed in range(300)] for weakest in (1.0, 0.25)
    )
    strengths = [d.angle / c.angle for c, d in zip(coarse, drawn, strict=True)]
    assert 0.25 <= min(strengths) < 0.28
    assert 0.97 < max(strengths) <= 1.0
    assert np.mean(strengths) == pytest.approx(0.625, abs=0.04)


def test_blending_leaves_its_input_alone(frame: NDArray[np.uint8]) -> None:
    before = frame.copy()
    draws(1)[0].blend(frame, BOX)
    np.testing.assert_array_equal(frame, before)


@pytest.mark.parametrize(
    "box", [(-300, 40, -200, 140), (60, -300, 160, -200), (400, 40, 500, 140), (60, 400, 160, 500)]
)
def test_a_face_off_the_frame_changes_nothing(frame: NDArray[np.uint8], box: tuple[float, ...]) -> None:
    np.testing.assert_array_equal(draws(1)[0].blend(frame, box), frame)


def test_a_face_across_the_border_is_forged_where_it_is_seen(frame: NDArray[np.uint8]) -> None:
    changed = (draws(1)[0].blend(frame, (-50, 40, 50, 140)) != frame).any(axis=-1)
    assert changed[75:105, :15].mean() > 0.9
    assert not changed[:, 86:].any()


@pytest.mark.parametrize("opacity", [1.0, 0.5])
def test_gain_and_opacity_follow_the_blending_equation(frame: NDArray[np.uint8], opacity: float) -> None:
    gain = np.array([1.2, 1.0, 0.8])
    forged = Forgery(gain=(1.2, 1.0, 0.8), opacity=opacity).blend(frame, BOX)
    source = np.minimum(frame[MIDDLE] * gain, 255.0)
    assert np.abs(forged[MIDDLE] - (frame[MIDDLE] * (1 - opacity) + source * opacity)).max() <= 0.51


def test_shift_moves_the_source_by_a_share_of_the_face(frame: NDArray[np.uint8]) -> None:
    forged = Forgery(shift=(0.1, -0.05), opacity=1.0).blend(frame, BOX)
    np.testing.assert_array_equal(forged[MIDDLE], np.roll(frame, (-5, 10), axis=(0, 1))[MIDDLE])


def test_a_half_turn_turns_the_source_about_the_face(frame: NDArray[np.uint8]) -> None:
    forged = Forgery(angle=180.0, opacity=1.0).blend(frame, BOX)
    about = np.roll(np.roll(frame, (-90, -110), axis=(0, 1))[::-1, ::-1], (91, 111), axis=(0, 1))
    np.testing.assert_array_equal(forged[MIDDLE], about[MIDDLE])


def test_mask_is_within_zero_and_opacity_and_full_on_the_face() -> None:
    for forgery in draws(50):
        mask = forgery.mask(200, 240, BOX)
        assert mask.shape == (200, 240, 1)
        assert mask.min() >= 0.0
        assert mask.max() <= np.float32(forgery.opacity) * (1 + 1e-6)
        np.testing.assert_allclose(mask[85:95, 105:115], forgery.opacity, rtol=1e-3)
        assert not mask[:, 220:].any()


def test_mask_without_softness_has_the_area_of_its_ellipse() -> None:
    mask = Forgery(opacity=1.0, softness=0.0).mask(200, 240, BOX)
    assert mask.sum() == pytest.approx(np.pi * 44 * 54, rel=0.03)


def test_mask_lies_a_little_below_the_box_s_centre() -> None:
    """By 4 % of its height, towards the chin."""
    mask = Forgery(opacity=1.0).mask(200, 240, BOX)[..., 0]
    rows, columns = np.indices(mask.shape)
    assert np.average(rows, weights=mask) == pytest.approx(94.0, abs=0.5)
    assert np.average(columns, weights=mask) == pytest.approx(110.0, abs=0.5)


def test_draws_are_within_their_ranges() -> None:
    for forgery in draws(200):
        departures = np.abs(np.array(forgery.gain) - 1.0)
        assert ((departures >= 0.06) & (departures <= 0.2)).all()
        assert abs(forgery.angle) <= 4.0
        assert abs(forgery.scale - 1.0) <= 0.05
        assert 0.8 <= forgery.opacity <= 1.0
    assert len({forgery.gain for forgery in draws(200)}) == 200
    assert draws(3) == draws(3)


def test_jitter_is_of_the_size_of_flicker_about_the_draw() -> None:
    forgery, rng = draws(1)[0], np.random.default_rng(0)
    wobbled = [forgery.jitter(rng) for _ in range(4000)]
    for values, base, departure in (
        ([w.gain[0] for w in wobbled], forgery.gain[0], forgery.gain[0] - 1.0),
        ([w.angle for w in wobbled], forgery.angle, forgery.angle),
        ([w.scale for w in wobbled], forgery.scale, forgery.scale - 1.0),
        ([w.shift[1] for w in wobbled], forgery.shift[1], forgery.shift[1]),
    ):
        assert np.mean(values) == pytest.approx(base, abs=0.01 * abs(departure))
        assert np.std(values) == pytest.approx(0.15 * abs(departure), rel=0.05)
    held = {"gain": forgery.gain, "angle": forgery.angle, "scale": forgery.scale, "shift": forgery.shift}
    assert {replace(w, **held) for w in wobbled} == {forgery}  # type: ignore[arg-type]
