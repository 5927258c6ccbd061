"""Cost of a network independent of the machine: parameters, multiply-accumulates, activations."""

import contextlib
import copy
from collections.abc import Iterator

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.detector import Detector

MIB = 2**20


class Cost(BaseModel):
    """The cost of a network for one input (one picture, one clip)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: int
    """Number of parameters; shared ones count once, buffers (batch-norm statistics) do not count."""
    trained_parameters: int
    """Number of parameters that require a gradient."""
    macs: int
    """Multiply-accumulates of one forward pass, as papers count them.

    Convolutions and matrix products, including those of attention; no biases, norms, activations, softmax or pooling.
    """
    activation_mb: float
    """MiB of float32 activations that one forward pass in eval mode keeps for the backward pass.

    Every storage counts once, including the input but no parameters and buffers, and as if every parameter were
    trained: the figure describes the network and its input size, not which parts are frozen. Attention is PyTorch's
    default, which keeps no L x L matrix where a fused kernel exists.
    """


def _activation_mb(network: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Return ``Cost.activation_mb`` of a forward pass on ``inputs``."""
    weight_addresses = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}  # by address; held until summed, because freed addresses are reused

    def save(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage

    with torch.autograd.graph.saved_tensors_hooks(save, lambda packed: packed):
        network(*inputs)
    return sum(storage.nbytes() for address, storage in saved.items() if address not in weight_addresses) / MIB


def _activation_mb_of_clip(detector: Detector, pictures: Tensor, valid: Tensor) -> float:
    """Return ``Cost.activation_mb`` of a clip: of its backbone's pass on one picture so many times, and of its head's.

    All pictures at once would take as much memory as training a backbone that may be frozen.
    """
    embeddings = torch.zeros(*pictures.shape[:-3], detector.embedding_size, device=pictures.device, requires_grad=True)
    picture = pictures.flatten(0, -4)[:1].clone()
    of_pictures = embeddings[..., 0].numel() * _activation_mb(detector.backbone, (picture,))
    return of_pictures + _activation_mb(detector.head, (embeddings, valid))


def macs_of(network: nn.Module, *inputs: Tensor) -> int:
    """Return the multiply-accumulates of one forward pass on ``inputs``, as ``Cost.macs`` counts them."""
    # SDPBackend.MATH, because FlopCounterMode has no formula for the CPU's fused attention and would count 0 for it.
    with _frozen(network), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(*inputs)
    return int(counter.get_total_flops()) // 2


@contextlib.contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Let no parameter require a gradient: FlopCounterMode fails on views of those that do, also under ``no_grad``."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.no_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def cost_of(network: nn.Module, *inputs: Tensor) -> Cost:
    """Return the cost of ``network`` for the first sample of ``inputs``, each [N, ...].

    The passes run on a float32 copy in eval mode, so that ``network`` and the random state stay as they are.
    """
    parameters = list(network.parameters())
    measured = copy.deepcopy(network).float().eval().requires_grad_(True)
    # Cloned, because a slice of a batch would keep the storage of the whole batch.
    first = tuple((t.float() if t.is_floating_point() else t)[:1].detach().clone() for t in inputs)
    with torch.enable_grad(), torch.random.fork_rng(devices=[t.device for t in first if t.is_cuda]):
        return Cost(
            parameters=sum(parameter.numel() for parameter in parameters),
            trained_parameters=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
            macs=macs_of(measured, *first),
            activation_mb=_activation_mb_of_clip(measured, *first)
            if isinstance(measured, Detector) and measured.architecture.per == "clip"
            else _activation_mb(measured, first),
        )
