"""A detector: a timm backbone that is applied to each picture, and a head.

Several modalities share one backbone, and their embeddings are concatenated before the head (late fusion). One backbone
per modality, frozen except for its last block, would store nearly the same weights several times. The head's first
layer has separate weights for each modality, and a single network computes all cached outputs of the frozen part.
"""

import copy
from typing import Literal

import timm
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn

from models.megatron import Megatron, MegatronSettings
from models.temporal import ClipHead, Temporal, TemporalSettings
from stage import Modality, Per, StageError, WrongArgument, reason_of


def check_backbone(name: str) -> str:
    """Return ``name`` if it is a timm architecture, with or without a tag of weights.

    Raises WrongArgument, with similar names, for any name that timm does not list: a hub address in a user's file must
    not start a download.
    """
    if name not in timm.list_models() and name not in timm.list_pretrained():
        similar = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:6] or [
            "repvit_m0_9",
            "vit_base_patch14_dinov2",
        ]
        raise WrongArgument(f"timm has no backbone {name!r}; some that it has: {', '.join(similar)}")
    return name


class Architecture(BaseModel):
    """What network a run holds, enough to build it empty."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    """Name of a timm backbone, which may end with a dot and the tag of its weights."""
    size: int = Field(ge=16, le=1024)
    """Side of the input picture in pixels."""
    modalities: tuple[Modality, ...] = ("rgb",)
    """The modalities of the input, in this order."""
    head_hidden: int | None = Field(default=None, ge=1, le=65536)
    """Width of the head's hidden layer (Linear, ReLU, Dropout, Linear); None for one linear layer."""
    megatron: MegatronSettings | None = None
    """Settings of the Megatron head over a clip's frames; None for another head."""
    temporal: TemporalSettings | None = None
    """Settings of a clip student's head over a clip's frames; None for another head."""
    activation: Literal["relu"] | None = None
    """Activation that replaces the backbone's GELUs, which int8 runtimes compute in float32; None: keep them."""
    fused: bool = False
    """True after re-parameterization, which folds all branches of a block into one convolution."""

    @field_validator("backbone")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            return check_backbone(name)
        except StageError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _whole(self) -> "Architecture":
        if not self.modalities or len(set(self.modalities)) < len(self.modalities):
            raise ValueError("modalities must be named, each once")
        if self.megatron and self.modalities != ("rgb", "depth"):
            raise ValueError("megatron looks at rgb and depth")
        if self.temporal and (self.megatron or len(self.modalities) > 1):
            raise ValueError("a temporal head takes one modality, and stands alone")
        return self

    @property
    def network(self) -> str:
        """The backbone's name without the tag of its weights."""
        return self.backbone.partition(".")[0]

    @property
    def per(self) -> Per:
        """Whether one score belongs to a frame or to a whole clip."""
        return "clip" if self.megatron or self.temporal else "frame"

    @property
    def of_head(self) -> dict[str, object]:
        """What the head's weights are made for, and their shapes do not tell."""
        over_frames = self.megatron or self.temporal
        settings = over_frames.model_dump(include={"pooling", "heads"}) if over_frames else {}
        return {"modality": "+".join(self.modalities)} | settings


def create_backbone(name: str, size: int, **pretrained: object) -> nn.Module:
    """Create a timm backbone without its classifier: [N, 3, size, size] -> [N, D] pooled embeddings.

    A backbone of fixed input size (a vision transformer) is created for ``size``; timm resamples its positions.
    ``pretrained``: further arguments of ``timm.create_model``. Raises StageError if the size is not possible, and
    WrongArgument for a name that timm does not list.
    """
    cfg = timm.get_pretrained_cfg(check_backbone(name))
    shape = {"img_size": size} if cfg.fixed_input_size else {}
    try:
        backbone: nn.Module = timm.create_model(name, num_classes=0, **shape, **pretrained)
    except AssertionError as error:
        raise _cannot_take(name, size, error) from error
    return backbone


def _cannot_take(name: str, size: int, error: Exception) -> StageError:
    """Return the error for a backbone that cannot take crops of ``size`` pixels."""
    return StageError(
        f"{name} cannot take crops of {size} px ({reason_of(error)}): prepare the store with another --size, or choose "
        "another network"
    )


def classify(head: nn.Module, embeddings: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return logits, float [N, 2], for embeddings.

    embeddings: float [N, D], or [N, M, D] for several modalities; for clips [N, T, D] or [N, T, M, D], with ``valid``,
    bool [N, T].
    """
    if valid is not None:
        logits: Tensor = head(embeddings, valid)
    else:
        logits = head(embeddings.flatten(1) if embeddings.ndim > 2 else embeddings)
    return logits


class Detector(nn.Module):
    """A backbone and a head: normalized pictures to logits, float32 [N, 2] (real, fake).

    Pictures are float32 [N, 3, S, S], or [N, M, 3, S, S] for several modalities; a clip detector (``architecture.per``)
    takes [N, T, 3, S, S] or [N, T, M, 3, S, S], and the mask of valid frames, bool [N, T]. Raises StageError if the
    backbone cannot take crops of this size.
    """

    def __init__(self, architecture: Architecture, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.architecture = architecture
        self.backbone = create_backbone(architecture.backbone, architecture.size) if backbone is None else backbone
        if architecture.activation == "relu":
            replace_gelus(self.backbone)
        self.embedding_size = self._probe()
        self.head = self._head()
        if architecture.fused and backbone is None:
            from timm.utils import reparameterize_model

            self.backbone = reparameterize_model(self.backbone)

    def _probe(self) -> int:
        """Return the width D of an embedding. Raises StageError if the backbone cannot take crops of this size."""
        name, size, training = self.architecture.backbone, self.architecture.size, self.backbone.training
        try:
            with torch.no_grad():
                output = self.backbone.eval()(torch.zeros(1, 3, size, size))
        except (AssertionError, RuntimeError, ValueError) as error:  # some say so in a forward pass alone
            raise _cannot_take(name, size, error) from error
        if not isinstance(output, Tensor) or output.ndim != 2:
            raise StageError(
                f"{name} gives no embedding of a picture, but maps or several outputs: choose another network"
            )
        self.backbone.train(training)
        return output.shape[1]

    def _head(self) -> nn.Module:
        if self.architecture.megatron:
            return Megatron(self.embedding_size, self.architecture.megatron)
        if self.architecture.temporal:
            return Temporal(self.embedding_size, self.architecture.temporal)
        width, hidden = self.embedding_size * len(self.architecture.modalities), self.architecture.head_hidden
        if hidden is None:
            return nn.Linear(width, 2)
        return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, 2))

    @property
    def classifier(self) -> nn.Linear:
        """The layer that computes the logits."""
        if isinstance(self.head, ClipHead):
            return self.head.classifier
        last = self.head[-1] if isinstance(self.head, nn.Sequential) else self.head
        assert isinstance(last, nn.Linear)
        return last

    @property
    def first_of_head(self) -> nn.Linear | None:
        """The head's layer that takes a picture's embedding, float [..., D]; None for several modalities."""
        if len(self.architecture.modalities) > 1:
            return None
        first = self.head[0] if isinstance(self.head, nn.Sequential) else getattr(self.head, "project", self.head)
        assert isinstance(first, nn.Linear)
        return first

    def with_parts(self, backbone: nn.Module | None = None, head: nn.Module | None = None) -> "Detector":
        """Return a detector with the given parts replaced; it shares the other parts with this one."""
        other = copy.copy(self)
        other._modules = {
            "backbone": self.backbone if backbone is None else backbone,
            "head": self.head if head is None else head,
        }
        return other

    def example(self, frames: int) -> tuple[Tensor, ...]:
        """Return the inputs, N = 1, for one sample of zeros: a frame, or a clip of T = ``frames`` valid frames."""
        architecture = self.architecture
        modality_axis = [len(architecture.modalities)] if len(architecture.modalities) > 1 else []
        shape = [*modality_axis, 3, architecture.size, architecture.size]
        if architecture.per == "frame":
            return (torch.zeros(1, *shape),)
        return torch.zeros(1, frames, *shape), torch.ones(1, frames, dtype=torch.bool)

    def forward(self, pictures: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return logits, float32 [N, 2]."""
        return classify(self.head, per_picture(self.backbone, pictures), valid)


def gelus(backbone: nn.Module) -> list[str]:
    """Return the module names of a backbone's GELUs."""
    kinds = nn.GELU | timm.layers.GELU | timm.layers.GELUTanh
    return [name for name, module in backbone.named_modules() if isinstance(module, kinds)]


def replace_gelus(backbone: nn.Module) -> None:
    """Replace every GELU by a ReLU, in place; weights keep their values and names."""
    for name in gelus(backbone):
        parent, _, attribute = name.rpartition(".")
        setattr(backbone.get_submodule(parent), attribute, nn.ReLU())


def per_picture(backbone: nn.Module, pictures: Tensor) -> Tensor:
    """Apply a backbone to each picture: [..., 3, S, S] -> [..., D]."""
    if pictures.ndim == 4:
        result: Tensor = backbone(pictures)
        return result
    flat: Tensor = backbone(pictures.flatten(0, -4))
    return flat.view(*pictures.shape[:-3], -1)
