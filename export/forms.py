"""The forms in which a run is exported: runtime, programs, batch, delegate and file name, and which do not exist."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from export.runtimes import ORT, SUFFIX_OF, Delegate, Method, Runtime
from models.run import RunInfo
from stage import PALETTES, Scheme, WrongArgument

FORMATS: dict[str, Runtime] = {"executorch": "executorch", "onnx": "onnxruntime", "coreml": "coreml"}
FORMAT_OF = {runtime: name for name, runtime in FORMATS.items()}


@dataclass(frozen=True)
class Form:
    """One form in which a run is exported: it gives one artifact."""

    runtime: Runtime
    method: Method = "forward"
    batch: int | None = 1
    """Samples that a program takes at once; None: any number."""
    delegate: Delegate | None = None
    """Delegate of ExecuTorch; None for other runtimes."""
    etrecord: bool = False
    """Whether ExecuTorch's record for its profiler is written beside the artifact."""
    ort: bool = False
    """Whether ONNX programs are written in ONNX Runtime's own format."""

    def file(self, info: RunInfo) -> str:
        """Return the name of the artifact's file or folder, made of its student, scheme and form."""
        architecture = info.architecture
        parts = [
            architecture.network,
            architecture.activation,
            {"forward": None, "steps": "clip", "clip": "whole-clip"}[self.method],
            info.scheme,
            None if self.batch == 1 else f"batch{self.batch or '-dynamic'}",
            None if self.delegate in (None, "xnnpack") else self.delegate,
        ]
        name = "-".join(part for part in parts if part)
        if self.method == "steps" and self.runtime != "executorch":
            return f"{name}-{'ort' if self.ort else FORMAT_OF[self.runtime]}"
        return f"{name}{ORT if self.ort else SUFFIX_OF[self.runtime]}"

    def lacks(self, scheme: Scheme) -> str | None:
        """Return why a scheme does not exist in this form, or None if it does."""
        if scheme in PALETTES and self.runtime != "coreml":
            return "only Core ML stores weights as places in a table: here they would take as much room as in fp32"
        return None


def _parse_names(text: str, known: Sequence[str], option: str) -> list[str]:
    """Return the names in a comma-separated option, in the order of ``known``. Raises WrongArgument for others."""
    names = {name.strip() for name in text.split(",")}
    if unknown := sorted(names - set(known)):
        raise WrongArgument(f"{option} {','.join(unknown)!r} is unknown: give some of {','.join(known)}")
    return [name for name in known if name in names]


MOST_AT_ONCE = 1024
"""Most samples that a program of any batch takes at once."""


def _parse_batch(text: str) -> int | None:
    """Return a batch size, or None for ``dynamic``. Raises WrongArgument for other text."""
    if text == "dynamic":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= MOST_AT_ONCE:
        raise WrongArgument(f"--batch {text!r} is neither a number from 1 to {MOST_AT_ONCE} nor dynamic")
    return int(text)


def parse_forms(formats: str, batch: str, delegates: str, etrecord: bool, ort: bool) -> list[Form]:
    """Return the forms that the options of ``export`` ask for, whatever the student.

    Raises WrongArgument for a wrong option, and for one that belongs to a runtime that is not asked for.
    """
    runtimes = [FORMATS[name] for name in _parse_names(formats, [*FORMATS], "--format")]
    chosen = _parse_names(delegates, get_args(Delegate), "--delegate")
    onnx_options = {"--batch": batch != "1", "--ort": ort}
    executorch_options = {"--delegate": chosen != ["xnnpack"], "--etrecord": etrecord}
    for format, options in {"onnx": onnx_options, "executorch": executorch_options}.items():
        for option, is_set in options.items():
            if is_set and FORMATS[format] not in runtimes:
                raise WrongArgument(f"{option} is for {format}: add it to --format")
    forms: list[Form] = []
    for runtime in runtimes:
        if runtime == "executorch":
            forms += [
                Form(runtime, delegate=delegate, etrecord=etrecord)
                for delegate in get_args(Delegate)
                if delegate in chosen
            ]
        elif runtime == "onnxruntime":
            as_ort_choices = (False, True) if ort else (False,)
            forms += [Form(runtime, batch=_parse_batch(batch), ort=as_ort) for as_ort in as_ort_choices]
        else:
            forms.append(Form(runtime))
    return forms


def forms_of(info: RunInfo, forms: Sequence[Form]) -> Iterator[Form]:
    """Return the forms of a run's student: a clip student is exported in two steps, and also as one program."""
    methods: tuple[Method, ...] = ("forward",) if info.architecture.per == "frame" else ("steps", "clip")
    return (replace(form, method=method) for form in forms for method in methods)
