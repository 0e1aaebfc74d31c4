"""Imports the libraries that networks come from, and says what is wrong where one does not import."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib import metadata
from types import ModuleType
from typing import Any

import torch
from torch import nn

from structprune.errors import brief
from structprune.report.limits import Refused


def imported(name: str) -> ModuleType:
    """A module by its name.

    Raises:
        ImportError: It is not installed.
        Refused: It is installed, and does not import; the message says what to do.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        library = name.partition(".")[0]
        if not _installed(library):
            raise
        # A name that the library does not have is no fault of the library.
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == library:
            raise
        raise Refused(_broken(library, error)) from error
    except Exception as error:
        raise Refused(_broken(name.partition(".")[0], error)) from error


def _installed(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def _broken(library: str, error: Exception) -> str:
    version = _installed(library)
    said = f"{library}{f' {version}' if version else ''} is installed but does not import ({brief(error)})"
    # torchvision's wheels hold operators that are compiled for one build of PyTorch.
    if "torchvision::" in str(error):
        return (
            f"{said}: torchvision's compiled operators do not load, because it was built for another PyTorch than the "
            f"{torch.__version__} here. Install both from one index, as https://pytorch.org/get-started says: "
            "pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cpu"
        )
    return f"{said}: repair it first. python -c 'import {library}' shows all of the error"


def build(architecture: str, own: Callable[[], None]) -> nn.Module:
    """Make the network that ``--arch`` names, with random weights.

    Args:
        architecture: ``torchvision:NAME``, ``timm:NAME`` or ``package.module:function``.
        own: Called before a module of the user's own is imported.

    Raises:
        Refused: The library is missing or does not know the name.
    """
    home, _, name = architecture.partition(":")
    if not name:
        raise Refused(f"--arch {architecture}: expected torchvision:NAME, timm:NAME or package.module:function.")
    try:
        made = _made(home, name, own)
    except ImportError as error:
        raise Refused(f"--arch {architecture}: {home} cannot be imported ({error}).") from error
    except Refused as error:
        raise Refused(f"--arch {architecture}: {error}.") from error
    except Exception as error:
        raise Refused(f"--arch {architecture}: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise Refused(f"--arch {architecture}: returned a {type(made).__name__}, expected an nn.Module.")
    return made


def _made(home: str, name: str, own: Callable[[], None]) -> Any:
    if home == "torchvision":
        return imported("torchvision.models").get_model(name, weights=None)
    if home == "timm":
        return imported("timm").create_model(name, pretrained=False)
    own()
    return getattr(imported(home), name)()
