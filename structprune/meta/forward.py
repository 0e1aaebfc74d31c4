"""What surrounds a forward on the meta device: mode, global state, constants, module paths."""

from __future__ import annotations

import gc
import random
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from structprune.compat import dynamo
from structprune.inputs import Invocations, misread
from structprune.meta.replica import walk

# What a run sets holds for the whole process: random states, the kernels of attention, function caches. Of two threads
# at once each would put back what the other had set.
_ALONE = threading.RLock()


@contextmanager
def running(model: nn.Module, training: bool, *, decomposed: bool = True, seed: int = 0) -> Iterator[None]:
    """Put a copy into a mode, with the global state that a run needs, and restore it; one thread at a time.

    Random numbers start from the same state every time: a layer that is dropped by chance must be
    dropped in every run, or in none.

    Args:
        model: The copy.
        training: The mode.
        decomposed: Run attention as the operators that it is made of: which fused kernel would be taken depends on
            sizes and strides.
        seed: What random numbers start from.
    """
    modes = {module: module.training for _, module in walk(model)}
    with _ALONE, _random_state(model, seed), ExitStack() as stack:
        try:
            if dynamo() is not None:
                # Compiled functions that a mode was seen around would never be compiled again.
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if decomposed:
                stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
                torch.backends.mha.set_fastpath_enabled(False)
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            model.train(training)
            yield
        finally:
            for module, mode in modes.items():
                # To set an attribute of a module takes ten times as long as to read it.
                if module.training is not mode:
                    module.training = mode


@contextmanager
def _random_state(model: nn.Module, seed: int) -> Iterator[None]:
    """Seed every source of random numbers that a forward may draw from, and put them back."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        try:
            first = next(model.parameters(), None)
            kind = "cpu" if first is None else first.device.type
            if kind not in ("cpu", "meta"):
                device = torch.get_device_module(kind)
                if hasattr(device, "manual_seed_all"):
                    stack.enter_context(torch.random.fork_rng(range(device.device_count()), device_type=kind))
                    device.manual_seed_all(seed)
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
        finally:
            torch.set_rng_state(states[0])
            random.setstate(states[1])
            np.random.set_state(states[2])


@contextmanager
def module_paths(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep ``stack[-1]`` at the path of the module that runs."""
    # One hook for all modules, where one for each would have to be put on and taken off thousands of times.
    modules = walk(model)
    paths = {id(m): path for path, m in modules if not isinstance(m, torch.jit.ScriptModule)}

    def enter(module: nn.Module, _args: Any) -> None:
        path = paths.get(id(module))
        if path is not None:
            stack.append(path)

    def leave(module: nn.Module, _args: Any, _out: Any) -> None:
        if id(module) in paths:
            stack.pop()

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        with _no_word_of_hooks(modules):
            yield
    finally:
        for handle in handles:
            handle.remove()
        stack.clear()


@contextmanager
def _no_word_of_hooks(modules: list[tuple[str, nn.Module]]) -> Iterator[None]:
    """A compiled module warns of hooks on all modules: these are ours, and soon gone."""
    compiling = dynamo()
    if compiling is None or not any(isinstance(module, compiling.OptimizedModule) for _, module in modules):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Using `torch\.compile\(module\)` when there are global hooks")
        yield


@contextmanager
def collection_paused() -> Iterator[None]:
    """Let Python's cycle collector rest: it would look through a growing record again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def reads_values(error: BaseException) -> bool:
    """Whether a forward failed for want of the values of floating-point tensors."""
    return "meta" in str(error).lower() or isinstance(error, NotImplementedError)


def way_on(error: BaseException, calls: Invocations) -> str:
    """What to do about a forward that failed on the meta device with these calls."""
    hint = misread(calls)
    if hint and not reads_values(error):
        return hint
    if reads_values(error):
        return (
            "Its forward reads the values of floating-point tensors (.item(), .numpy(), a branch, a boolean mask), "
            "which structprune does not compute: prune the part before or behind, or rewrite that line with tensor "
            "operators."
        )
    return (
        "Give inputs that its forward takes, of the model's dtype: a tensor, a tuple, a dict of keyword arguments, or "
        "a callable model -> output."
    )


def not_inferred(model: nn.Module, refused: list[str]) -> str:
    """The message for a model that runs with none of the guesses."""
    tried = "; ".join(refused[:3]) or "nothing could be guessed from its first layer"
    return (
        f"The inputs of {type(model).__name__} could not be inferred (tried {tried}). Give example_inputs: a "
        "tensor, a tuple of arguments, a dict of keyword arguments, or a callable model -> output."
    )


def unseen(operator: str, module: str) -> str:
    """The message for an operator that runs functions of the model's: no mode sees what happens in them."""
    return (
        f"{operator} in {module or 'the forward of the model'} is a higher-order operator: it compiles what it is "
        "given, and nobody sees which operators run. Write it with ordinary operators meanwhile "
        "(scaled_dot_product_attention in place of flex_attention, a loop or a branch in Python), or give "
        "example_inputs as a callable that runs the part before or behind."
    )
