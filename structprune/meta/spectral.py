"""Layers under spectral normalisation, which divides a weight by a number that all of its channels decide."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm

from structprune.meta.replica import walk


def spectral_note(model: nn.Module) -> str:
    """Which layers stay whole for it, and what to do; empty where there are none."""
    hooked, parametrised = [], []
    for path, module in walk(model):
        if any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values()):
            hooked.append(path or "the model")
        if is_parametrized(module) and any(isinstance(m, _SpectralNorm) for m in module.parametrizations.modules()):  # type: ignore[union-attr]
            parametrised.append(path or "the model")
    if not hooked and not parametrised:
        return ""
    names = hooked + parametrised
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    ways = [
        *(["torch.nn.utils.remove_spectral_norm(module)"] if hooked else []),
        *(['torch.nn.utils.parametrize.remove_parametrizations(module, "weight")'] if parametrised else []),
    ]
    return (
        f"spectral norm divides the weights of {shown} by a number that all their channels decide, so none of them "
        f"goes: take it off first ({', '.join(ways)}), prune, and put it on again"
    )
