"""``--core``: the tests that need no other library, as on versions of PyTorch that those do not support."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

# What the core tests do without. An environment of an older PyTorch has none of them.
LIBRARIES = frozenset(
    "torchvision timm transformers peft accelerate lightning torchao onnx onnxruntime onnxscript huggingface_hub "
    "distributed mkdocs".split()
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--core", action="store_true", help="skip what needs a library that is not installed")


def _skip_if_absent(config: pytest.Config, error: ImportError) -> None:
    library = (error.name or "").partition(".")[0]
    if config.getoption("--core") and library in LIBRARIES:
        pytest.skip(f"needs {library}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    try:
        return (yield)
    except ImportError as error:
        _skip_if_absent(item.config, error)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    try:
        return (yield)
    except ImportError as error:
        _skip_if_absent(item.config, error)
        raise
