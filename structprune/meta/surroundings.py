"""What may surround a call: modes of PyTorch under which tensors are not made as usual."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from structprune.errors import ModelError


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Make ordinary tensors, whatever surrounds the call; it decorates the public calls.

    Under inference mode no operator can be followed, and what is made can never be trained. Under a default device
    that has no numbers, factories without a device would make tensors without any.

    Raises:
        ModelError: Tensors made here are of another class: a mode that fakes them is active.
    """
    # To leave inference mode turns gradients on, which whoever calls may have turned off.
    with_gradients = torch.is_grad_enabled() or torch.is_inference_mode_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(with_gradients):
        made = torch.empty(0)
        if type(made) is not torch.Tensor:
            raise ModelError(
                f"Every tensor that is made here is a {type(made).__name__}, which has no numbers: a mode such as "
                "FakeTensorMode is active. Leave it, and call again."
            )
        with torch.device("cpu") if made.is_meta else nullcontext():
            yield
