"""The running average of the trained weights, which validates and is exported."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn


class AveragedWeights:
    """Exponential moving average of the parameters that train, in float32.

    Early on the decay is (1 + n) / (10 + n) at step n, so that the start is soon forgotten.

    Args:
        decay: share of the average that stays at each step, in [0, 1].
        device: where the average lives: on the CPU it takes no GPU memory, but each step copies the weights there.
    """

    def __init__(self, model: nn.Module, decay: float, device: str) -> None:
        self.model = model
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.names = list(trained)
        self._parameters = list(trained.values())
        self._ema = EMAModel(self._parameters, decay=decay, foreach=True)
        # bfloat16 would lose nearly every step: at a decay of 0.9999 one adds a ten-thousandth of the difference.
        self._ema.to(device=device, dtype=torch.float32)
        is_moved = device != self._parameters[0].device.type
        self._copies = [_pinned_like(parameter) for parameter in self._parameters] if is_moved else None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The averages by the names of their parameters."""
        return dict(zip(self.names, self._ema.shadow_params, strict=True))

    @property
    def num_steps(self) -> int:
        """How many steps were averaged."""
        return self._ema.optimization_step

    @num_steps.setter
    def num_steps(self, value: int) -> None:
        self._ema.optimization_step = value

    @torch.no_grad()
    def step(self) -> None:
        """Takes in the weights as they are now."""
        if self._copies is None:
            self._ema.step(self._parameters)
            return
        for copy, parameter in zip(self._copies, self._parameters, strict=True):
            copy.copy_(parameter, non_blocking=True)
        torch.cuda.synchronize()
        self._ema.step(self._copies)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Within the block the model holds the averages and is in evaluation mode."""
        self._ema.store(self._parameters)
        self._ema.copy_to(self._parameters)
        self.model.eval()
        try:
            yield
        finally:
            self._ema.restore(self._parameters)
            self.model.train()


def _pinned_like(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, pin_memory=True))
