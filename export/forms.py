"""In which forms a run is written: runtime, programs, batch and delegate, what each file is called, and what is not."""

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
    """One artifact that a run is written as."""

    runtime: Runtime
    method: Method = "forward"
    batch: int | None = 1
    """Samples that a program takes at once; None: any number."""
    delegate: Delegate | None = None
    """ExecuTorch's; None of other runtimes."""
    etrecord: bool = False
    """Whether ExecuTorch's record for its profiler goes beside it."""
    ort: bool = False
    """Whether an ONNX program goes into ONNX Runtime's own format."""

    def file(self, info: RunInfo) -> str:
        """Return the name of the artifact's file, or folder: its student, scheme and form."""
        architecture = info.architecture
        marks = [
            architecture.network,
            architecture.activation,
            {"forward": None, "steps": "clip", "clip": "whole-clip"}[self.method],
            info.scheme,
            None if self.batch == 1 else f"batch{self.batch or '-dynamic'}",
            None if self.delegate in (None, "xnnpack") else self.delegate,
        ]
        name = "-".join(mark for mark in marks if mark)
        if self.method == "steps" and self.runtime != "executorch":
            return f"{name}-{'ort' if self.ort else FORMAT_OF[self.runtime]}"
        return f"{name}{ORT if self.ort else SUFFIX_OF[self.runtime]}"

    def lacks(self, scheme: Scheme) -> str | None:
        """Say why a scheme does not exist in this form, or None if it does."""
        if scheme in PALETTES and self.runtime != "coreml":
            return "only Core ML stores weights as places in a table: here they would take as much room as in fp32"
        return None


def _named(text: str, known: Sequence[str], option: str) -> list[str]:
    """Return the parts of a comma-separated option in the order of ``known``; WrongArgument names one that is not."""
    names = {part.strip() for part in text.split(",")}
    if unknown := sorted(names - set(known)):
        raise WrongArgument(f"{option} {','.join(unknown)!r} is unknown: give some of {','.join(known)}")
    return [name for name in known if name in names]


MOST_AT_ONCE = 1024
"""Samples that a program of any batch takes."""


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= MOST_AT_ONCE:
        raise WrongArgument(f"--batch {text!r} is neither a number from 1 to {MOST_AT_ONCE} nor dynamic")
    return int(text)


def parse_forms(formats: str, batch: str, delegates: str, etrecord: bool, ort: bool) -> list[Form]:
    """Return the forms that the options of ``export`` ask for, of any student.

    Raises WrongArgument for an option that is wrong, or of a runtime that is not asked for.
    """
    runtimes = [FORMATS[name] for name in _named(formats, [*FORMATS], "--format")]
    asked = _named(delegates, get_args(Delegate), "--delegate")
    of_onnx = {"--batch": batch != "1", "--ort": ort}
    of_executorch = {"--delegate": asked != ["xnnpack"], "--etrecord": etrecord}
    for format, options in {"onnx": of_onnx, "executorch": of_executorch}.items():
        for option, given in options.items():
            if given and FORMATS[format] not in runtimes:
                raise WrongArgument(f"{option} is for {format}: add it to --format")
    forms: list[Form] = []
    for name in runtimes:
        if name == "executorch":
            forms += [Form(name, delegate=d, etrecord=etrecord) for d in get_args(Delegate) if d in asked]
        elif name == "onnxruntime":
            forms += [Form(name, batch=_batch(batch), ort=own) for own in ((False, True) if ort else (False,))]
        else:
            forms.append(Form(name))
    return forms


def forms_of(info: RunInfo, forms: Sequence[Form]) -> Iterator[Form]:
    """Return the forms of a run's student: a clip student goes out in two steps, and in one."""
    methods: tuple[Method, ...] = ("forward",) if info.architecture.per == "frame" else ("steps", "clip")
    return (replace(form, method=method) for form in forms for method in methods)
