"""Caches of frozen outputs: what is computed, what is found again, and what another key or a kill does."""

import resource
import shutil
from pathlib import Path

import psutil
import pytest
import torch

from compress.caches import (
    _allow_open_files,
    default_cache,
    weights_fingerprint,
)
from data.store import ClipStore
from data.views import ViewRule, Views
from stage import StageError, WrongArgument
from tests.compress.means_cache import Means, check, fill, key_of


def test_rows_are_those_of_the_views(opened_store: ClipStore, tmp_path: Path) -> None:
    views = Views(opened_store, ViewRule(views=2, forge=True))
    check(fill(tmp_path, key_of(views), views, Means()), views)


def test_a_second_run_computes_nothing(opened_store: ClipStore, tmp_path: Path) -> None:
    views = Views(opened_store, ViewRule())
    fill(tmp_path, key_of(views), views, Means())
    again = Means()
    check(fill(tmp_path, key_of(views), views, again), views)
    assert again.calls == 1  # for the shape


def test_more_views_are_added_to_those_there_are(opened_store: ClipStore, tmp_path: Path) -> None:
    one, two = (Views(opened_store, ViewRule(views=n)) for n in (1, 2))
    fill(tmp_path, key_of(one), one, Means())
    means = Means()
    check(fill(tmp_path, key_of(two), two, means), two)
    assert means.calls == 1 + len(one)


def test_interrupted_work_goes_on(opened_store: ClipStore, tmp_path: Path) -> None:
    views = Views(opened_store, ViewRule())
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, key_of(views), views, Means(fail_after=6))
    rest = Means()
    check(fill(tmp_path, key_of(views), views, rest), views)
    assert rest.calls == 1 + len(views) - 5


@pytest.mark.parametrize("change", [{"store": "t"}, {"weights": "v"}, {"network": "m"}, {"precision": "bf16"}])
def test_another_key_computes_anew_and_says_why(
    opened_store: ClipStore, tmp_path: Path, change: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    views = Views(opened_store, ViewRule())
    fill(tmp_path, key_of(views), views, Means())
    assert "are computed" not in capfd.readouterr().err
    means = Means()
    fill(tmp_path, key_of(views, **change), views, means)
    assert means.calls == 1 + len(views)
    assert f"means are computed: those that are kept differ in {next(iter(change))}\n" in capfd.readouterr().err


def test_a_policy_that_is_refused_leaves_no_clip_out(opened_store: ClipStore, tmp_path: Path) -> None:
    views = Views(opened_store, ViewRule(views=2, augment="rand-m9.5"))
    with pytest.raises(WrongArgument, match=r"timm refuses --augment rand-m9\.5"):
        fill(tmp_path, key_of(views), views, Means())
    assert views.unreadable == set()


def test_another_seed_of_views_is_another_key(opened_store: ClipStore, tmp_path: Path) -> None:
    for seed in (0, 1):
        views = Views(opened_store, ViewRule(views=2, seed=seed))
        check(fill(tmp_path, key_of(views), views, Means()), views)


def test_a_clip_that_cannot_be_read_is_left_out_and_said(
    demo_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = shutil.copytree(demo_store, tmp_path / "store")
    views = Views(ClipStore(store), ViewRule())
    clip = views.views[2].clip
    (store / "clips" / f"{clip.video_id}.parquet").write_bytes(b"gone")
    fill(tmp_path / "cache", key_of(views), views, Means())
    assert views.unreadable == {2}
    assert f"clip {clip.clip_id} is left out of training: " in capfd.readouterr().err


def test_rows_stay_with_their_clips_where_another_file_is_missing(demo_store: Path, tmp_path: Path) -> None:
    store = shutil.copytree(demo_store, tmp_path / "store")
    files = [store / "clips" / f"{clip.video_id}.parquet" for clip in ClipStore(store).clips("train")[:2]]
    for file in files:  # as on a disk of a network that comes and goes
        content = file.read_bytes()
        file.unlink()
        views = Views(ClipStore(store), ViewRule(views=2))
        check(fill(tmp_path / "cache", key_of(views), views, Means()), views)
        file.write_bytes(content)


def test_fingerprint_follows_names_and_values() -> None:
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    first = weights_fingerprint(network)
    assert weights_fingerprint(network) == first
    with torch.no_grad():
        network.weight[0, 0] += 1e-6
    assert weights_fingerprint(network) != first


def test_a_damaged_file_is_refused_and_not_filled_with_zeros(opened_store: ClipStore, tmp_path: Path) -> None:
    views = Views(opened_store, ViewRule())
    fill(tmp_path, key_of(views), views, Means())
    file = next(tmp_path.glob("*/block-0.npy"))
    content = file.read_bytes()
    for spoiled in (content[:-100], content[:20], b""):
        file.write_bytes(spoiled)
        with pytest.raises(StageError, match=r"block-0.npy is damaged or not of this cache: remove .*means-"):
            fill(tmp_path, key_of(views), views, Means())
    file.write_bytes(content)
    check(fill(tmp_path, key_of(views), views, Means()), views)


def test_rows_that_were_removed_are_computed_again(opened_store: ClipStore, tmp_path: Path) -> None:
    views = Views(opened_store, ViewRule())
    fill(tmp_path, key_of(views), views, Means())
    next(tmp_path.glob("*/block-0.npy")).unlink()
    check(fill(tmp_path, key_of(views), views, Means()), views)


def test_the_cache_of_the_folder_one_stands_in_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store" / "clips").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "store")
    assert default_cache(Path()) == default_cache(Path("clips/..")) == tmp_path / "store.cache"


def test_numbers_beyond_half_precision_are_refused(opened_store: ClipStore, tmp_path: Path) -> None:
    views = Views(opened_store, ViewRule())
    with pytest.raises(StageError, match=r"gives numbers beyond half precision; give --precision fp32, if that is"):
        fill(tmp_path, key_of(views), views, lambda pixels, _: 1e6 * Means()(pixels))


def test_plain_clips_are_the_same_under_every_seed_and_policy(opened_store: ClipStore) -> None:
    views = Views(opened_store, ViewRule())
    keys = [key_of(views, rule=rule) for rule in (ViewRule(), ViewRule(seed=5, augment="AugMix"), ViewRule(views=2))]
    assert keys[0] == keys[1]
    assert keys[0].folder == keys[2].folder
    assert key_of(views, rule=ViewRule(forge=True, seed=5)).folder != keys[0].folder


def test_what_changes_no_view_changes_no_cache(opened_store: ClipStore) -> None:
    views = Views(opened_store, ViewRule())

    def folder(**rule: object) -> str:
        return key_of(views, rule=ViewRule.model_validate(rule)).folder

    assert folder(views=2) == folder(views=2, weakest_forgery=0.9)  # nothing is forged
    assert folder(forge=True) == folder(forge=True, augment="AugMix")  # there is no augmented copy
    assert folder(forge=True) != folder(forge=True, weakest_forgery=0.9)
    assert folder(views=2) != folder(views=2, augment="AugMix")


def test_as_many_files_may_be_open_as_a_cache_has_blocks(monkeypatch):
    allowed = []
    monkeypatch.setattr("compress.caches.resource.setrlimit", lambda _, limits: allowed.append(limits))
    monkeypatch.setattr("compress.caches.resource.getrlimit", lambda _: (300, 4096))
    _allow_open_files(10)
    assert allowed == []
    _allow_open_files(1000)
    ((soft, hard),) = allowed
    assert 1000 < soft < 2000 and hard == 4096
    with pytest.raises(StageError, match=r"5000 blocks of cached views need \d+ open files, and the system allows"):
        _allow_open_files(5000)


def test_each_block_keeps_one_file_open(opened_store, tmp_path, monkeypatch):
    """With as many files allowed as its blocks and a few more."""
    monkeypatch.setattr("compress.caches.SPARE_FILES", 8)
    views, before = Views(opened_store, ViewRule(views=20)), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (psutil.Process().num_fds() + 8, before[1]))
    try:
        check(fill(tmp_path, key_of(views), views, Means()), views)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
