"""What a learning step is trained on: an `Accelerator` in its precision, and kernels that repeat to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin

from surgeon.core.recipe.learning_step import LearningStep
from surgeon.errors import LearningError

_SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


Precision = Literal["no", "bf16"]
"""The dtype of matrix products, in accelerate's words: `no` is float32."""


def precision_of(step: LearningStep, device: torch.device) -> Precision:
    """Return the dtype of a step's matrix products: the one that it names, or bfloat16 on a GPU that has it."""
    if step.mixed_precision is not None:
        return step.mixed_precision
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "no"


@contextmanager
def training_accelerator(step: LearningStep, device: torch.device, precision: Precision) -> Iterator[Accelerator]:
    """Yield the accelerator of a step; meanwhile kernels are deterministic if the step wants them so.

    Raises:
        LearningError: it was launched to spread the weights over processes.
    """
    AcceleratorState._reset_state(reset_partial_state=False)  # an earlier training may have chosen another precision
    accelerator = Accelerator(
        mixed_precision=precision,
        cpu=device.type == "cpu",
        # The model is where it was asked to be: accelerate knows of no second GPU of one process.
        device_placement=False,
        # Experts that no token of a share was sent to have no gradient; the others must not wait for it.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        # Or else gradients would be divided by what a launcher's settings say of accumulation.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    if accelerator.distributed_type in _SHARDING:
        raise LearningError(
            f"cannot be trained by {accelerator.distributed_type.value}, which spreads the weights over processes",
            where=step.name, allowed="data parallel training, in which each process holds the whole model",
            hint="accelerate launch --multi_gpu; or attach masked_lora first: adapters take little memory",
        )  # fmt: skip
    with _deterministic(step.deterministic, device):
        yield accelerator


@contextmanager
def _deterministic(wanted: bool, device: torch.device) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(wanted, warn_only=device.type != "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
