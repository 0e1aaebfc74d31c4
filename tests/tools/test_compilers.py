"""Compiled, exported and traced, a pruned model returns what it returns eagerly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tools.networks import CASES, Case

EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
# Other kernels add float32 numbers in another order; outputs are of the size of one.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}
BATCH = torch.export.Dim("batch")


@pytest.mark.slow
@EACH
def test_inductor(case: Case) -> None:
    import torch._inductor.config

    torch.compiler.reset()
    small: Any = case.pruned()
    # One thread compiles, in this process: no pool of workers is left behind.
    with torch.no_grad(), torch._inductor.config.patch(compile_threads=1):
        compiled = torch.compile(small, fullgraph=True)
        torch.testing.assert_close(compiled(case.batch()), small(case.batch()), **ROUNDING)


@EACH
def test_a_compiled_training_step(case: Case) -> None:
    """The graphs forward and backward run the same kernels, so gradients are those of eager mode."""
    torch.compiler.reset()
    small, twin = case.pruned().train(), case.pruned().train()
    small(case.batch()).square().sum().backward()
    torch.compile(twin, backend="aot_eager")(case.batch()).square().sum().backward()
    for ours, theirs in zip(small.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad, **ROUNDING)


@EACH
@pytest.mark.parametrize("strict", [False, True])
def test_export(case: Case, strict: bool, tmp_path: Path) -> None:
    small = case.pruned()
    program = torch.export.export(small, (case.batch(),), dynamic_shapes=({0: BATCH},), strict=strict)
    torch.export.save(program, tmp_path / "pruned.pt2")
    loaded = torch.export.load(tmp_path / "pruned.pt2").module()
    for size in (2, 5):
        assert torch.equal(loaded(case.batch(size)), small(case.batch(size)))


@pytest.mark.slow
@EACH
@pytest.mark.filterwarnings("ignore")
def test_onnx(case: Case, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    small, path = case.pruned(), tmp_path / "pruned.onnx"
    torch.onnx.export(
        small, (case.batch(),), path, dynamo=True, dynamic_shapes=({0: BATCH},), input_names=["x"], verbose=False
    )
    onnx.checker.check_model(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in (2, 5):
        (found,) = session.run(None, {"x": case.batch(size).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), small(case.batch(size)).detach(), **ROUNDING)
    initializers = sum(torch.Size(t.dims).numel() for t in onnx.load(path).graph.initializer)
    dense = sum(p.numel() for p in case.dense().parameters())
    assert initializers < 0.75 * dense, "the file must be as small as the model"


@EACH
@pytest.mark.filterwarnings("ignore")
def test_torchscript_trace(case: Case, tmp_path: Path) -> None:
    small = case.pruned()
    torch.jit.trace(small, case.batch()).save(tmp_path / "pruned.pt")
    loaded = torch.jit.load(tmp_path / "pruned.pt")
    # What tracing made a number holds for the batch that was traced; a frozen one is optimised further.
    assert torch.equal(loaded(case.batch()), small(case.batch()))
    torch.testing.assert_close(torch.jit.freeze(loaded)(case.batch()), small(case.batch()), **ROUNDING)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_script() -> None:
    case = CASES["residual"]
    small = case.pruned()
    assert torch.equal(torch.jit.script(small)(case.batch(5)), small(case.batch(5)))
