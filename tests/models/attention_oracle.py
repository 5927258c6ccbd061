"""The parts of heads over clips in NumPy, for the tests of this room."""

import math

import numpy as np
from torch import nn

from models.temporal import EncoderSettings


class AttentionOracle:
    """A head's parameters and its arithmetic in float64, a frame and an attention head at a time."""

    def __init__(self, head: nn.Module, settings: EncoderSettings, width: int) -> None:
        self.state = {name: tensor.double().numpy() for name, tensor in head.state_dict().items()}
        self.settings, self.width = settings, width

    def position(self, t: int) -> list[float]:
        angles = [t / 10000 ** (2 * (d // 2) / self.width) for d in range(self.width)]
        return [math.cos(angle) if d % 2 else math.sin(angle) for d, angle in enumerate(angles)]

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def attention(self, name: str, asking: np.ndarray, asked: np.ndarray) -> np.ndarray:
        weights = np.split(self.state[f"{name}.in_proj_weight"], 3)
        biases = np.split(self.state[f"{name}.in_proj_bias"], 3)
        q, k, v = (x @ w.T + b for x, w, b in zip((asking, asked, asked), weights, biases, strict=True))
        size = self.width // self.settings.heads
        answers = np.empty_like(asking)
        for start in range(0, self.width, size):
            part = slice(start, start + size)
            for t in range(len(asking)):
                shares = np.exp([q[t, part] @ key[part] / math.sqrt(size) for key in k])
                answers[t, part] = (shares / shares.sum()) @ v[:, part]
        return self.linear(f"{name}.out_proj", answers)

    def encoder(self, name: str, x: np.ndarray) -> np.ndarray:
        for layer in range(self.settings.layers):
            here = f"{name}.layers.{layer}"
            normed = self.norm(f"{here}.norm1", x)
            x = x + self.attention(f"{here}.self_attn", normed, normed)
            hidden = np.maximum(self.linear(f"{here}.linear1", self.norm(f"{here}.norm2", x)), 0)
            x = x + self.linear(f"{here}.linear2", hidden)
        return self.norm(f"{name}.norm", x)
