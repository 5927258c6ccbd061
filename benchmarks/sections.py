"""The report's sections on single artifacts and runs: what int8 cost, and what badly cut crops cost."""

from benchmarks.columns import figure, fixed
from benchmarks.report import Peak, Row
from compress.fidelity import Diagnosis

NOISE_COLUMNS = ("Layer", "Share of the logit's variance", "SNR of its output, dB")
WORST_LAYERS = 8
"""Told by name."""


def diagnosis_facts(diagnosis: Diagnosis) -> dict[str, str]:
    """Say what int8 cost a run."""
    observers = ", ".join(f"{name} {figure(snr)}" for name, snr in diagnosis.observers.items())
    islands = ", ".join(f"{count} {name}" for name, count in diagnosis.islands.items())
    return {
        "Logit SNR": f"{figure(diagnosis.logit_snr_db)} dB on {diagnosis.samples} validation {diagnosis.per}s",
        "By observer, dB, before logits were matched": observers,
        "In fp32": ", ".join(["the head", *diagnosis.float_layers]),
        "Operations that leave int8": islands or "none",
    }


def peak_text(peak: Peak) -> str:
    """Say how fast the machine multiplied, and how steadily."""
    speeds = f"float32 {figure(peak.fp32_gmacs)}, bytes {figure(peak.int8_gmacs)} GMAC/s"
    return f"{speeds}; float32 moved by {peak.drift:.1%} from before the rows to after them"


def worst_layers(diagnosis: Diagnosis) -> list[tuple[str, str, str]]:
    """Return name, share of the logit's variance, and SNR of the layers that hurt most."""
    return [
        (noise.layer, fixed(noise.logit_noise, ".3%"), figure(noise.snr_db))
        for noise in diagnosis.worst()[:WORST_LAYERS]
    ]


ROBUSTNESS_COLUMNS = ("Crop", "Clips", "AUC", "Delta AUC", "Verdict flips", "Flips at EER")


def robustness_rows(row: Row) -> list[tuple[str, ...]]:
    """Return the cells of an artifact's table of crops that were cut other than the manifest says."""
    return [
        (
            found.perturbation,
            str(found.clips),
            fixed(found.auc),
            fixed(found.delta_auc, "+z.4f"),
            fixed(found.verdict_flips, ".1%"),
            fixed(found.equal_error_flips, ".1%"),
        )
        for found in row.robustness or ()
    ]
