"""Keeps the EMA weights, with which a run validates and which are exported."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn


class EMAWeights:
    """Keeps an exponential moving average of the trained parameters, in float32.

    In the first steps the decay is (1 + n) / (10 + n) at step n, so that the initial weights are soon forgotten.

    Args:
        decay: share of the old EMA weights that each step keeps, in [0, 1].
        device: where the EMA weights are kept. ``cpu`` saves GPU memory, but copies the weights to the host each step.
    """

    def __init__(self, network: nn.Module, decay: float, device: str) -> None:
        self.network = network
        trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        self.names = list(trained)
        self._parameters = list(trained.values())
        self._ema = EMAModel(self._parameters, decay=decay, foreach=True)
        # bfloat16 would lose nearly every step: at a decay of 0.9999 a step adds 0.0001 of the difference.
        self._ema.to(device=device, dtype=torch.float32)
        is_moved = device != self._parameters[0].device.type
        self._copies = [_pinned_like(parameter) for parameter in self._parameters] if is_moved else None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Returns the EMA weights by the names of their parameters."""
        return dict(zip(self.names, self._ema.shadow_params, strict=True))

    @property
    def num_steps(self) -> int:
        """Returns how many steps the EMA has taken."""
        return self._ema.optimization_step

    @num_steps.setter
    def num_steps(self, value: int) -> None:
        self._ema.optimization_step = value

    @torch.no_grad()
    def step(self) -> None:
        """Updates the EMA with the current weights."""
        if self._copies is None:
            self._ema.step(self._parameters)
            return
        for copy, parameter in zip(self._copies, self._parameters, strict=True):
            copy.copy_(parameter, non_blocking=True)
        torch.cuda.synchronize()
        self._ema.step(self._copies)

    @contextmanager
    def in_network(self) -> Iterator[None]:
        """Puts the EMA weights into the network, in evaluation mode, until the block ends."""
        self._ema.store(self._parameters)
        self._ema.copy_to(self._parameters)
        self.network.eval()
        try:
            yield
        finally:
            self._ema.restore(self._parameters)
            self.network.train()


def _pinned_like(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, pin_memory=True))
