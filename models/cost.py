"""What a network costs by its arithmetic, whatever the machine: parameters, multiply-accumulates, activations."""

import copy

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

MIB = 2**20


class Cost(BaseModel):
    """The cost of a network for one input (one picture, one clip)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: int
    """Numbers that a checkpoint holds as parameters; shared ones once, buffers (batch-norm statistics) not."""
    trained_parameters: int
    """Those of them that require a gradient."""
    macs: int
    """Multiply-accumulates of one forward pass: convolutions and matrix products, those of attention included.

    As papers count them: without biases, norms, activations, softmax and pooling.
    """
    activation_mb: float
    """MiB of float32 activations that one forward pass in eval mode keeps for the backward pass.

    Every storage once, the input included, parameters and buffers not, and as if every parameter were trained:
    it describes the network and the size of its input, not what happens to be frozen. Attention is PyTorch's default,
    which keeps no L x L matrix where a fused kernel exists.
    """


def _activation_mb(network: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # by address; held until summed, for a freed address is used again

    def keep(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing):
        network(*inputs)
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own) / MIB


def macs_of(network: nn.Module, *inputs: Tensor) -> int:
    """Return the multiply-accumulates of one forward pass on ``inputs``, as ``Cost.macs`` counts them."""
    # FlopCounterMode has no formula for the CPU's fused attention, and would count it as nothing.
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(*inputs)
    return int(counter.get_total_flops()) // 2


def cost_of(network: nn.Module, *inputs: Tensor) -> Cost:
    """Return what ``network`` costs for the first of a batch of ``inputs``, each [N, ...].

    The passes run on a copy in eval mode and float32, so ``network`` and the random numbers stay as they were.
    """
    parameters = list(network.parameters())
    measured = copy.deepcopy(network).float().eval().requires_grad_(True)
    # Cloned, for a part of a batch would keep the storage of the whole.
    first = tuple((t.float() if t.is_floating_point() else t)[:1].detach().clone() for t in inputs)
    with torch.enable_grad(), torch.random.fork_rng(devices=[t.device for t in first if t.is_cuda]):
        return Cost(
            parameters=sum(parameter.numel() for parameter in parameters),
            trained_parameters=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
            macs=macs_of(measured, *first),
            activation_mb=_activation_mb(measured, first),
        )
