"""``structprune-report``: what pruning would give for a saved model, on this machine."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import structprune
from structprune import LatencyOptions, StructPruneError
from structprune.errors import brief
from structprune.report.files import FileError, Loaded, Trust, demo_model, load_model, shapes_of
from structprune.report.printable import PlainParser, console_for
from structprune.report.study import Report, Wishes, count_bounded, study, verdict
from structprune.report.terminal import show

DONE, WRONG, NOTHING, INTERRUPTED = 0, 2, 3, 130

_EXAMPLES = """\
examples:
  structprune-report --demo
      the built-in ResNet-50: what can go, and how much faster it gets
  structprune-report model.pt --granularity channel --html report.html
      a saved model, residual streams cut too, and a page to send to somebody
  structprune-report weights.pt --arch timm:resnet50 --no-latency --json -
      weights in timm's network, numbers only, for another program

exit codes: 0 done, 2 bad arguments or file, 3 nothing can be pruned.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if not given.demo and given.model is None:
        parser.error("give a model file, or --demo for the built-in ResNet-50")
    if given.compare is not None and (given.html is not None or given.no_latency):
        parser.error("--compare measures two files and writes no page: leave --html and --no-latency out")
    if given.demo and given.model is not None:
        parser.error("give a model file or --demo, not both")
    if given.input and given.input_size:
        parser.error("give --input or --input-size, not both")
    # JSON on stdout must be all that is there.
    console = console_for(quiet=given.quiet or given.json == "-")
    errors = console_for(quiet=False, stderr=True)
    try:
        _check_targets(given)
        with warnings.catch_warnings():
            # torch's own notices are for programmers, and land in the middle of a table.
            warnings.simplefilter("ignore")
            return _run(given, console, errors)
    except StructPruneError as error:
        errors.print(f"structprune-report: {error}", style="red", soft_wrap=True)
        return WRONG
    except KeyboardInterrupt:
        errors.print("structprune-report: interrupted before anything was known")
        return INTERRUPTED


def _run(given: argparse.Namespace, console: Console, errors: Console) -> int:
    if given.threads:
        torch.set_num_threads(given.threads)
    source = "the built-in ResNet-50" if given.demo else str(given.model)
    console.print(f"structprune {structprune.__version__}: {source}")
    loaded = _opened(given)
    example_inputs = _inputs(given, loaded)
    report = Report(model=type(loaded.model).__name__, source=source)
    with _foreign_errors_told(source), _progress(errors, quiet=given.quiet) as progress:
        try:
            if given.compare is not None:
                return _compare(given, loaded, example_inputs, progress, console)
            wishes = _wishes(given)
            progress.steps = wishes.steps
            study(report, loaded.model, example_inputs, wishes, progress)
        except KeyboardInterrupt:
            report.interrupted = True
            report.verdict = verdict(report)
    show(report, console)
    _write(report, given)
    return INTERRUPTED if report.interrupted else NOTHING if report.nothing else DONE


@contextmanager
def _foreign_errors_told(source: str) -> Iterator[None]:
    """A model may have anything for its parts that a file could put there, and fail in any way."""
    try:
        yield
    except StructPruneError:
        raise
    except Exception as error:
        raise FileError(
            f"{source}: the network in it cannot be studied ({brief(error)}). Try it in Python: "
            "structprune.prune_model(model, 0.5) shows where that comes from."
        ) from error


def _opened(given: argparse.Namespace) -> Loaded:
    if given.demo:
        return demo_model()
    return load_model(given.model, given.arch, _trust(given))


def _trust(given: argparse.Namespace) -> Trust:
    return Trust(given.trust, frozenset(given.allow or ()))


def _inputs(given: argparse.Namespace, loaded: Loaded) -> Any:
    if given.input:
        return shapes_of(given.input)
    if given.input_size:
        return shapes_of([f"1,{given.input_size}"])
    return loaded.example_inputs


def _wishes(given: argparse.Namespace) -> Wishes:
    return Wishes(
        ratios=given.ratio,
        granularity=given.granularity,
        batch_sizes=given.batch_size or [None],
        measures=not given.no_latency,
        options=_options(given),
    )


def _options(given: argparse.Namespace) -> LatencyOptions:
    options: LatencyOptions = {
        "device": given.device,
        "channels_last": given.channels_last,
        "compile": given.compile,
        "min_seconds": given.min_seconds,
    }
    if given.dtype:
        dtype = getattr(torch, given.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise FileError(f"--dtype {given.dtype}: no dtype of PyTorch; try float32, bfloat16 or float16.")
        options["dtype"] = dtype
    return options


def _compare(
    given: argparse.Namespace, loaded: Loaded, example_inputs: Any, progress: _Progress, console: Console
) -> int:
    """Two files side by side."""
    pruned = load_model(given.compare, given.arch, _trust(given))
    batch_sizes = given.batch_size or [None]
    progress.steps = len(batch_sizes)
    compared = []
    interrupted = False
    try:
        for model in (loaded.model, pruned.model):
            count_bounded(model, example_inputs)
        for batch_size in batch_sizes:
            progress.step(f"measuring both{'' if batch_size is None else f', batch of {batch_size}'}")
            options: LatencyOptions = {**_options(given), "batch_size": batch_size}
            compared.append(structprune.compare(loaded.model, pruned.model, example_inputs, **options))
    except KeyboardInterrupt:
        interrupted = True
    for comparison in compared:
        console.print(comparison)
    if given.json:
        text = ",\n".join(comparison.to_json() for comparison in compared)
        _put(given.json, f'{{"comparisons": [{text}]}}')
    return INTERRUPTED if interrupted else DONE


def _write(report: Report, given: argparse.Namespace) -> None:
    if given.json:
        _put(given.json, report.to_json())
    if given.html:
        from structprune.report.page import page

        given.html.write_text(page(report), encoding="utf-8")


def _put(target: str, text: str) -> None:
    if target == "-":
        print(text)
    else:
        Path(target).write_text(text + "\n", encoding="utf-8")


def _check_targets(given: argparse.Namespace) -> None:
    """Say before the work, not after it, that something cannot be written."""
    for option, target in (("--json", given.json), ("--html", given.html)):
        path = Path(target) if target is not None and target != "-" else None
        if path is not None and (path.is_dir() or not str(target)):
            raise FileError(f"{option} {target}: expected the name of a file.")
        if path is not None and not path.parent.is_dir():
            raise FileError(f"{option} {target}: there is no folder {path.parent}.")
    if given.html is None:
        return
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise FileError(f"--html needs {error.name}: pip install 'structprune[html]'") from error


class _Progress:
    """Steps on a terminal; nothing where stderr is none."""

    def __init__(self, bar: Progress | None) -> None:
        self._bar = bar
        self._task = bar.add_task("reading", total=None) if bar is not None else None
        self.steps = 0

    def step(self, text: str) -> None:
        """A step begins; the one before is done."""
        if self._bar is not None and self._task is not None:
            started = self._bar.tasks[0].total is not None
            self._bar.update(self._task, description=text, total=self.steps or None, advance=1 if started else 0)


@contextmanager
def _progress(console: Console, *, quiet: bool) -> Iterator[_Progress]:
    if quiet or not console.is_terminal:
        yield _Progress(None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield _Progress(bar)


def _ratio(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no share between 0 and 1 (the model file goes first)")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 1 or more (the model file goes first)")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = PlainParser(
        prog="structprune-report",
        description="What pruning would give for a saved model: parameters, MACs and measured time.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", type=Path, help="file of torch.save, or weights")
    parser.add_argument("--demo", action="store_true", help="take the built-in ResNet-50")
    parser.add_argument("--arch", metavar="NAME", help="for weights: torchvision:NAME, timm:NAME, package:function")
    parser.add_argument("--compare", metavar="FILE", type=Path, help="compare the model with this one, prune nothing")
    what = parser.add_argument_group("what to prune")
    what.add_argument("--ratio", type=_ratio, nargs="+", default=[0.25, 0.5, 0.75], help="shares of channels to remove")
    what.add_argument("--granularity", choices=("filter", "channel"), default="filter", help="default filter")
    inputs = parser.add_argument_group("inputs (inferred for most models)")
    inputs.add_argument("--input-size", metavar="C,H,W", help="one input without its batch, as in 3,224,224")
    inputs.add_argument("--input", action="append", metavar="SHAPE", help="one input with batch, 1,16:int64; repeat it")
    inputs.add_argument("--batch-size", type=_positive, nargs="+", metavar="N", help="batch sizes to measure with")
    timing = parser.add_argument_group("measurement")
    timing.add_argument("--device", default="auto", help="default: the accelerator if there is one, else cpu")
    timing.add_argument("--dtype", help="float32, bfloat16, float16; default: the model's own")
    timing.add_argument("--channels-last", action="store_true", help="images and kernels with the channels last")
    timing.add_argument("--compile", action="store_true", help="compile the models with torch.compile first")
    timing.add_argument("--threads", type=_positive, metavar="N", help="CPU threads; default: PyTorch's own setting")
    timing.add_argument("--min-seconds", type=float, default=3.0, metavar="S", help="seconds a model, default 3")
    timing.add_argument("--no-latency", action="store_true", help="count only")
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", help="write all numbers as JSON; - for stdout")
    output.add_argument("--html", metavar="FILE", type=Path, help="write a page (needs structprune[html])")
    output.add_argument("--quiet", action="store_true", help="print nothing but errors")
    safety = parser.add_argument_group("safety")
    safety.add_argument("--allow", action="append", metavar="NAME", help="let the file use package.module.Name")
    safety.add_argument("--trust", action="store_true", help="let the file run what it says, as TorchScript needs")
    parser.add_argument("--version", action="version", version=f"structprune {structprune.__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
