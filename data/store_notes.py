"""What a user must know of a store: what its splits lack, leave out or hold by prescription, photos, frame rates."""

from collections.abc import Collection, Iterable, Sequence
from statistics import median

from data.layouts import FAKE, REAL, SPLITS, Source
from data.parquet import Row
from data.splits import lacks_label
from data.store import StoreInfo

RATES_APART = 1.25
"""Least ratio of the frame rates of real and of fake videos that is noted: 30 and 25 frames a second are not."""
MANY_FILES = 10
"""Least number of a method's files of which chance alone would not put all into one split."""


def missing_label_notes(info: StoreInfo, labels: Collection[int]) -> list[str]:
    """Return a note for each of val and test that lacks a label though its share is above 0.

    ``labels``: those of the input files.
    """
    shares, forge = dict(zip(SPLITS, info.settings.ratios, strict=True)), info.settings.forge
    remedy = (
        f"other --ratios{' or --seed' if forge else ', --seed or --forge'} may mend it, files of other persons, or "
        "other splits where a table gives them; persons who are in one video are kept in one split."
    )
    for name, label in (("real", REAL), ("fake", FAKE)):
        if any(counts[name] for counts in info.clips.values()):
            continue
        if label in labels:
            remedy = f"no {name} file gave a clip, for the reasons in videos.parquet."
        elif label == REAL or not forge:
            forged = ", or --forge" if label == FAKE else ""
            remedy = (
                f"give {name} files as well, in a folder that holds real/ and fake/ or named by a .csv file{forged}."
            )
    return [
        f"The {split} split has {counts['real']} real and {counts['fake']} fake clips, and teach and distill need "
        f"both: {remedy}"
        for split, counts in info.clips.items()
        if split != "train" and shares[split] and not all(counts.values())
    ]


def photo_notes(sources: Sequence[Source], frames: int) -> list[str]:
    """Return a note on the number of photos, if there are any, where clips have several frames."""
    photos = sum(source.is_photo for source in sources)
    if frames == 1 or not photos:
        return []
    return [
        f"{photos} of {len(sources)} files are photos, too short for clips of {frames} frames: --frames 1 takes them, "
        "and single frames of videos (without flow)."
    ]


def prescribed_notes(splits: Sequence[str | None], ratios: tuple[float, float, float]) -> list[str]:
    """Return a note on the number of files in splits of no share, where prescribed ones put them, if there are any."""
    empty = [split for split, share in zip(SPLITS, ratios, strict=True) if not share]
    kept = [split for split in splits if split in empty]
    if not kept:
        return []
    return [
        f"{len(kept)} of {len(splits)} files are in {' and '.join(split for split in empty if split in kept)}, as "
        "their corpus prescribes, though the share is 0: without its column split, or --official-splits, they follow "
        "--ratios."
    ]


def left_out_notes(splits: Sequence[str | None]) -> list[str]:
    """Return a note on the number of files that have no split, if there are any."""
    left_out = sum(split is None for split in splits)
    if not left_out:
        return []
    return [
        "Fakes link most persons, so that a split would lack a label: the persons were split one by one, and "
        f"{left_out} of {len(splits)} files, which show persons of two splits, are left out."
    ]


def in_one_split_notes(
    sources: Sequence[Source], splits: Sequence[str | None], ratios: tuple[float, float, float]
) -> list[str]:
    """Return a note for each method whose files, though many, are all in one split: persons link them."""
    labels = [source.label for source in sources]
    notes = []
    for method in sorted({source.method for source in sources}):
        files = [index for index, source in enumerate(sources) if source.method == method]
        used = {splits[index] for index in files if splits[index]}
        drawn = any(sources[index].split is None for index in files)
        if not drawn or len(files) < MANY_FILES or len(used) != 1 or sum(ratio > 0 for ratio in ratios) == 1:
            continue
        persons = {person for index in files for person in sources[index].identities}
        if len(persons) == 1 or len(set(labels)) == 1:
            remedy = "Files of other persons would fill them."
        elif lacks_label(labels, splits, ratios):
            remedy = (
                "They are too few to be split one by one at these --ratios: larger shares, as 0.5,0.25,0.25, may do."
            )
        else:
            remedy = "In a store of these and their originals alone, they are split one by one."
        notes.append(
            f"All {len(files)} files of {method} are in {used.pop()}, as their persons are kept in one split: figures "
            f"of the other splits are not of it. {remedy}"
        )
    return notes


def frame_rate_notes(rows: Iterable[Row], frames: int) -> list[str]:
    """Return a note if real and fake videos that gave clips of several frames differ in their median frame rate.

    ``rows``: of ``videos.parquet``.
    """
    rates: dict[int, list[float]] = {REAL: [], FAKE: []}
    for row in rows:
        if row["clips"] and row["fps"]:
            rates[row["label"]].append(row["fps"])
    if frames == 1 or not all(rates.values()):
        return []
    real, fake = median(rates[REAL]), median(rates[FAKE])
    if max(real, fake) < RATES_APART * min(real, fake):
        return []
    return [
        f"Real videos have {real:.4g} frames a second and fake ones {fake:.4g} (medians): what looks at whole clips or "
        "at flow can tell them apart by that alone. Convert them to one rate before prepare."
    ]
