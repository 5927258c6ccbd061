"""Notes on splits: what is missing, and remedies that help."""

from dataclasses import replace
from pathlib import Path

import pytest

from data.layouts import SPLITS, Source
from data.splits import split_sources
from data.store import ClipStore
from data.store_notes import (
    frame_rate_notes,
    in_one_split_notes,
    missing_label_notes,
    photo_notes,
    prescribed_notes,
)


def test_a_method_that_is_in_one_split_as_a_whole_is_noted() -> None:
    of_one = [Source(Path(f"{n}"), f"{n}", 1, "DFD", ("a", f"b{n}")) for n in range(12)]
    others = [Source(Path(f"o{n}"), f"o{n}", n % 2, "youtube", (f"o{n}",)) for n in range(12)]
    splits: list[str | None] = [*["train"] * 12, *["train", "val", "test"] * 4]
    (note,) = in_one_split_notes([*of_one, *others], splits, (0.7, 0.1, 0.2))
    assert note.startswith("All 12 files of DFD are in train, as their persons are kept in one split: figures of the")
    assert note.endswith(" In a store of these and their originals alone, they are split one by one.")
    (note,) = in_one_split_notes(of_one + others[1::2] + others[:1], ["train"] * 19, (0.7, 0.1, 0.2))
    assert note.endswith(" too few to be split one by one at these --ratios: larger shares, as 0.5,0.25,0.25, may do.")
    prescribed = [replace(source, split="train") for source in of_one]
    assert in_one_split_notes([*prescribed, *others], splits, (0.7, 0.1, 0.2)) == []
    assert in_one_split_notes(of_one, ["test"] * 12, (0, 0, 1)) == []
    of_label = [replace(source, label=1) for source in of_one]
    for alone in (of_label, [replace(source, identities=("a",)) for source in of_one] + others):
        (note,) = in_one_split_notes(alone, ["train"] * len(of_one) + splits[12 : len(alone)], (0.7, 0.1, 0.2))
        assert note.endswith(" Files of other persons would fill them.")


@pytest.mark.parametrize(
    ("clips", "labels", "forge", "remedy"),
    [
        ({"train": (9, 9), "val": (1, 0), "test": (2, 2)}, {0, 1}, 0, "other --ratios, --seed or --forge may mend it"),
        (
            {"train": (9, 0), "val": (0, 0), "test": (2, 2)},
            {0},
            1,
            "other --ratios or --seed may mend it, files of oth",
        ),
        (
            {"train": (9, 0), "val": (1, 0), "test": (2, 0)},
            {0},
            0,
            "give fake files as well, in a folder that holds real/ and fake/ or named by a .csv file, or --forge.",
        ),
        (
            {"train": (9, 0), "val": (0, 0), "test": (0, 0)},
            {0},
            1,
            "other --ratios or --seed may mend it, files of oth",
        ),
        (
            {"train": (0, 9), "val": (0, 1), "test": (0, 2)},
            {1},
            0,
            "give real files as well, in a folder that holds real/ and fake/ or named by a .csv file.",
        ),
        (
            {"train": (9, 0), "val": (1, 0), "test": (2, 0)},
            {0, 1},
            0,
            "no fake file gave a clip, for the reasons in vi",
        ),
    ],
)
def test_what_mends_a_split_that_lacks_a_label(
    clips: dict[str, tuple[int, int]], labels: set[int], forge: int, remedy: str, opened_store: ClipStore
) -> None:
    info = opened_store.info.model_copy(
        update={
            "clips": {split: dict(zip(("real", "fake"), counts, strict=True)) for split, counts in clips.items()},
            "settings": opened_store.info.settings.model_copy(update={"forge": forge, "ratios": (0.7, 0.1, 0.2)}),
        }
    )
    notes = missing_label_notes(info, labels)
    assert notes[0].partition("need both: ")[2].startswith(remedy)
    assert len(notes) == sum(not all(counts) for split, counts in clips.items() if split != "train")


def test_photos_that_are_too_short_for_clips_are_counted() -> None:
    files = [Source(Path(name), name, 0, "real", (name,)) for name in ("a.jpg", "b.png", "c.mp4")]
    (note,) = photo_notes(files, 20)
    assert note.startswith(
        "2 of 3 files are photos, too short for clips of 20 frames: --frames 1 takes them, and single"
    )
    assert photo_notes(files, 1) == photo_notes(files[2:], 20) == []


def test_prescribed_splits_of_no_share_are_told() -> None:
    files = [Source(Path(f"{n}"), f"{n}", 0, "real", (f"{n}",), split) for n, split in enumerate(SPLITS)]
    splits = split_sources([*files, replace(files[0], split=None)], (0, 0, 1), 0)
    (note,) = prescribed_notes(splits, (0, 0, 1))
    assert note.startswith("3 of 4 files are in train and val, as their corpus prescribes, though the share is 0: with")
    assert prescribed_notes(splits, (0.7, 0.1, 0.2)) == prescribed_notes(["test", None], (0, 0, 1)) == []


def test_frame_rates_that_tell_the_labels_apart_are_noted() -> None:
    rates = [(0, 60.0), (0, 59.94), (0, 25.0), (1, 25.0), (1, 25.0), (1, 0.0)]  # a photo has none
    rows = [{"label": label, "fps": fps, "clips": 2} for label, fps in rates]
    (note,) = frame_rate_notes(rows, 8)
    assert note.startswith(
        "Real videos have 59.94 frames a second and fake ones 25 (medians): what looks at whole clips"
    )
    assert frame_rate_notes(rows, 1) == frame_rate_notes(rows[:3], 8) == []
    assert frame_rate_notes([row | {"fps": 30.0 - 5 * row["label"]} for row in rows], 8) == []
    assert frame_rate_notes([row | {"clips": row["label"]} for row in rows], 8) == []
