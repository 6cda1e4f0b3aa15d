"""Builds AdamW for float32 or bfloat16 weights or with 8-bit moments, and decides which weights decay."""

from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT, StateDict

from util.errors import UserError
from util.flags import OPTIMIZERS

EXEMPT_NAMES = ("norm", "embed", "scale_shift_table")
MOMENTS = ("exp_avg", "exp_avg_sq")
TORCHAO = "torchao.optim"


def decay_groups(model: nn.Module, weight_decay: float, decay_all: bool = False) -> list[dict[str, Any]]:
    """Splits the trained parameters into a group with weight decay and one without.

    Args:
        decay_all: all decay, as in the original.

    Matrices and convolution kernels decay. Biases, norms (the VAE's have up to four axes), embeddings (Wan's patch,
    time and text embedders and any ``nn.Embedding``) and Wan's modulation tables do not.

    Returns:
        The group with decay, then the group without; either may be empty.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[Tensor] = []
    exempt: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = not decay_all and (
                parameter.ndim < 2 or id(parameter) in tables or any(word in name for word in EXEMPT_NAMES)
            )
            (exempt if spared else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]


def build_optimizer(
    name: str,
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    decay_all: bool = False,
    seed: int = 0,
) -> Optimizer:
    """Builds the optimizer of a network's trained parameters, in the groups of ``decay_groups``.

    Change its learning rate only with ``set_learning_rate``: torchao keeps the rate in a tensor.

    Args:
        name: ``adamw`` is torch's, or ``StochasticAdamW`` if any weight is bfloat16. ``adamw8bit`` keeps the moments of
            large weights in 8 bits and needs torchao or bitsandbytes.
        betas, eps: of AdamW.
        decay_all: see ``decay_groups``.
        seed: for rounding bfloat16 weights; must be equal in all processes.

    Raises:
        UserError: if no package for ``adamw8bit`` is installed, or only one that cannot train bfloat16 weights.
    """
    groups = decay_groups(model, weight_decay, decay_all)
    has_bfloat16 = any(parameter.dtype is torch.bfloat16 for group in groups for parameter in group["params"])
    if name == "adamw8bit":
        return _adamw8bit(groups, has_bfloat16, seed, lr=lr, betas=betas, eps=eps)
    assert name == "adamw", f"name must be one of {OPTIMIZERS}, got {name}"
    if has_bfloat16:
        return StochasticAdamW(groups, lr=lr, betas=betas, eps=eps, seed=seed)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def check_optimizer(name: str, is_bfloat16: bool) -> None:
    """Checks that an optimizer's package is installed.

    Args:
        is_bfloat16: whether the weights to train will be bfloat16.

    Raises:
        UserError: if ``build_optimizer`` would raise one.
    """
    if name == "adamw8bit":
        _adamw8bit_package(is_bfloat16)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Sets the learning rate of every group; a rate that is a tensor is filled in place."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def stochastic_round(values: Tensor, generator: Generator) -> Tensor:
    """Rounds to one of the two nearest bfloat16 values at random, such that the expected result is the value itself.

    A bfloat16 is the upper half of a float32. A random 16-bit integer is added to the bits: it carries into the upper
    half with a probability proportional to the lower half. Then the lower half is dropped.

    Args:
        values: float32, of any shape.
        generator: on the device of ``values``.

    Returns:
        bfloat16 of the same shape. Values that bfloat16 holds exactly, infinities and NaN do not change. Beyond the
        largest bfloat16 (3.39e38) the upper neighbour is infinity, as in rounding to nearest.

    Source: Zamirai et al., Revisiting BFloat16 Training (arXiv 2010.06192).
    """
    # Drawn in the order of the logical axes: the memory layout (channels last) must not change a weight's draw.
    bits = torch.randint(1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    bits.add_(values.view(torch.int32)).bitwise_and_(-1 << 16)
    rounded = bits.view(torch.float32).to(torch.bfloat16)
    return rounded.masked_fill_(
        values.isnan(), torch.nan
    )  # the sum may have overflowed into its sign, or left no mantissa bit


class StochasticAdamW(Optimizer):
    """Implements AdamW for bfloat16 weights: computes in float32 and rounds the new weight stochastically.

    The neighbours of a weight just below 1 are 2^-8 away. Rounding to nearest loses every smaller step than half of
    that; stochastic rounding keeps it on average. float32 weights are updated as torch's AdamW does.

    Weight and moments take 2 + 4 + 4 = 10 bytes per bfloat16 parameter (float32: 12), without gradients. A step needs
    up to 11 more bytes per element, for one tensor at a time.

    The random bits depend only on the seed, the step and the index of the parameter, so that all processes of a
    data-parallel run, and a resumed run, round equally. The state holds no random numbers.

    Args:
        params: bfloat16 or float32 parameters, or groups of them.
        seed: for rounding; not saved in the state, so a resumed run must pass the same.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (arXiv 1711.05101), in the order of operations
    of ``torch.optim.AdamW``.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        betas: tuple[float, float],
        *,
        weight_decay: float = 1e-2,
        eps: float = 1e-8,
        seed: int = 0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.seed = seed

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Updates every parameter that has a gradient, with the current learning rate of its group."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        in_order = [(group, parameter) for group in self.param_groups for parameter in group["params"]]
        for index, (group, parameter) in enumerate(in_order):
            if parameter.grad is not None:
                self._update(group, parameter, index)
        return loss

    def _update(self, group: dict[str, Any], parameter: Tensor, index: int) -> None:
        assert parameter.dtype in (torch.bfloat16, torch.float32), f"weights must be bf16 or float32: {parameter.dtype}"
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state.update({name: torch.zeros_like(parameter, dtype=torch.float32) for name in MOMENTS})
        state["step"] += 1
        beta1, beta2 = group["betas"]
        mean, square = (state[name] for name in MOMENTS)
        gradient = parameter.grad.float()  # type: ignore[union-attr]
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        del gradient  # before the next temporaries
        weight = parameter.float()  # the parameter itself where it is float32
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        scale = square.sqrt().div_((1 - beta2 ** state["step"]) ** 0.5).add_(group["eps"])
        weight.addcdiv_(mean, scale, value=-group["lr"] / (1 - beta1 ** state["step"]))
        del scale
        if parameter.dtype is torch.bfloat16:
            generator = Generator(parameter.device).manual_seed(_mixed_seed(self.seed, state["step"], index))
            parameter.copy_(stochastic_round(weight, generator))

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Loads a ``state_dict``; copies the moments and keeps them in float32."""
        saved = state_dict["state"]
        # torch would cast the moments to the parameter's bfloat16.
        super().load_state_dict({**state_dict, "state": {key: {"step": saved[key]["step"]} for key in saved}})
        for group, saved_group in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for parameter, key in zip(group["params"], saved_group["params"], strict=True):
                for name in MOMENTS if key in saved else ():
                    self.state[parameter][name] = saved[key][name].to(parameter.device, torch.float32, copy=True)


def _mixed_seed(*numbers: int) -> int:
    """Hashes several numbers to a seed of 32 bits, all that torch's CPU generator reads."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0])


def _adamw8bit(groups: list[dict[str, Any]], has_bfloat16: bool, seed: int, **options: Any) -> Optimizer:
    package = _adamw8bit_package(has_bfloat16)
    if package.__name__ != TORCHAO:
        return package.AdamW8bit(groups, **options)
    optimizer: Optimizer = package.AdamW8bit(groups, bf16_stochastic_round=has_bfloat16, **options)

    def seed_step(optimizer: Optimizer, *_: Any) -> None:
        done = max((int(state["step"]) for state in optimizer.state.values()), default=0)
        torch.manual_seed(_mixed_seed(seed, done + 1))

    if has_bfloat16:  # torchao rounds with torch's global generator, which training uses for nothing else
        optimizer.register_step_pre_hook(seed_step)
    return optimizer


def _adamw8bit_package(has_bfloat16: bool) -> Any:
    """Imports the optimizers of torchao, or else of bitsandbytes."""
    with suppress(ImportError):
        return import_module(TORCHAO)
    try:
        bitsandbytes = import_module("bitsandbytes.optim")
    except ImportError:
        raise UserError(
            "--optimizer adamw8bit: needs torchao or bitsandbytes; pip install torchao, or pip install bitsandbytes"
        ) from None
    if has_bfloat16:
        raise UserError(
            "--optimizer adamw8bit: must round bfloat16 weights stochastically, got bitsandbytes, which cannot; "
            "pip install torchao, or use --optimizer adamw"
        )
    return bitsandbytes
