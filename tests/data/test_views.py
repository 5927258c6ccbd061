"""Views of clips: which there are, that each is one draw whatever is asked for first, and what forging does."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.store import ClipStore
from data.views import ViewRule, Views
from stage import StageError

ROOT = Path(__file__).parents[2]


def test_one_view_is_the_clips_themselves(opened_store: ClipStore) -> None:
    views = Views(opened_store, ViewRule())
    assert [view.clip for view in views.views] == opened_store.clips("train")
    for view in views.views[:3]:
        np.testing.assert_array_equal(views.pixels(view), opened_store.pixels(view.clip))


def test_views_multiply_the_training_split(opened_store: ClipStore) -> None:
    views = Views(opened_store, ViewRule(views=3))
    assert len(views) == 3 * len(opened_store.clips("train"))
    assert [[view.number for view in block] for block in views.blocks] == [[n] * 12 for n in range(3)]
    first = views.pixels(views.blocks[0][0])
    changed = [views.pixels(block[0]) for block in Views(opened_store, ViewRule(views=12)).blocks[1:]]
    assert sum((pixels != first).any() for pixels in changed) > 5


def test_a_frame_does_not_depend_on_which_others_are_asked_for(opened_store: ClipStore) -> None:
    views = Views(opened_store, ViewRule(views=8, forge=True, seed=3))
    for view in views.views[:: len(views) // 11]:
        whole = views.pixels(view)
        np.testing.assert_array_equal(views.pixels(view, [2, 0]), whole[[2, 0]])
        np.testing.assert_array_equal(views.pixels(view, [3]), whole[[3]])


def test_forging_adds_a_fake_of_every_real_view(opened_store: ClipStore) -> None:
    views = Views(opened_store, ViewRule(views=2, forge=True))
    reals = [clip for clip in opened_store.clips("train") if clip.label == 0]
    assert [len(block) for block in views.blocks] == [12, len(reals)] * 2
    assert all(view.label == 1 and view.method == "forged youtube" for view in views.blocks[1])
    assert [view.clip for view in views.blocks[3]] == reals


def test_forging_changes_the_face_and_little_around_it(opened_store: ClipStore) -> None:
    """Both went through the same compression, which is all that differs at the rim."""
    views = Views(opened_store, ViewRule(forge=True, weakest_forgery=1.0))
    real, fake = (block[[view.clip.label for view in block].index(0)] for block in views.blocks)
    difference = np.abs(views.pixels(real).astype(int) - views.pixels(fake)).mean(axis=(0, 3))
    assert difference[20:44, 20:44].mean() > 4
    assert difference[:3].mean() < 2


def test_real_views_are_compressed_like_forged_ones(opened_store: ClipStore) -> None:
    views = Views(opened_store, ViewRule(forge=True))
    real = next(view for view in views.blocks[0] if view.label == 0)
    stored, seen = opened_store.pixels(real.clip).astype(int), views.pixels(real)
    assert 0 < np.abs(stored - seen).mean() < 8


def test_forgeries_are_drawn_afresh_per_view(opened_store: ClipStore) -> None:
    views = Views(opened_store, ViewRule(views=2, forge=True, augment="ten"))
    assert (
        views._forged(np.full((4, 64, 64, 3), 99, np.uint8), views.blocks[1][0], None)
        != views._forged(np.full((4, 64, 64, 3), 99, np.uint8), views.blocks[3][0], None)
    ).any()


def test_reals_alone_need_forging(demo_corpus: Path, tmp_path: Path) -> None:
    from data.prepare import prepare

    prepare([demo_corpus], tmp_path / "store", methods="youtube", max_videos=3, frames=2, size=32, ratios="1,0,0")
    store = ClipStore(tmp_path / "store")
    with pytest.raises(
        StageError, match=r"train split of .*store has 3 real and 0 fake clips and needs both: .*--forge"
    ):
        Views(store, ViewRule())
    assert sorted(view.label for view in Views(store, ViewRule(forge=True)).views) == [0, 0, 0, 1, 1, 1]


def test_an_unknown_policy_is_refused(opened_store: ClipStore) -> None:
    with pytest.raises(StageError, match="--augment twirl is not known: take ten, RandAugment"):
        Views(opened_store, ViewRule(augment="twirl"))


def test_views_are_equal_in_every_process(demo_store: Path) -> None:
    code = (
        "import sys, hashlib; from pathlib import Path; from data.store import ClipStore; "
        "from data.views import ViewRule, Views; "
        "v = Views(ClipStore(Path(sys.argv[1])), ViewRule(views=5, forge=True, seed=9)); "
        "print(hashlib.sha256(b''.join(v.pixels(x).tobytes() for x in v.views[::4])).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(demo_store)]
    ended = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert ended[0] == ended[1] != ""


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"augment": "AugMix"}, "--augment AugMix changes views but the first: give --views 2 or more with it"),
        ({"augment": "AugMix", "forge": True}, "--augment AugMix changes views but the first"),
        ({"weakest_forgery": 0.5, "views": 2}, "--weakest-forgery 0.5 is for forgeries: give --forge with it"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(StageError, match=message):
        ViewRule.model_validate(rule).seeded(3)


def test_a_rule_takes_its_seed() -> None:
    rule = ViewRule(views=2, augment="AugMix", forge=True, weakest_forgery=0.5)
    assert rule.seeded(3) == rule.model_copy(update={"seed": 3})
