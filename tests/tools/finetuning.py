"""A fine-tuning on as many processes as ``torchrun`` starts: ``python -m tests.tools.finetuning FILE``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from structprune.transfer import LearningCurve, Task, finetune

TOGETHER = 16


def curve(**options: Any) -> LearningCurve:
    """Without batch norms, which see a process's own samples alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    labels = torch.arange(96) % 2
    images = torch.randn(96, 1, 8, 8) + labels[:, None, None, None]
    held_out = torch.randn(75, 1, 8, 8) + (torch.arange(75) % 2)[:, None, None, None]
    task = Task("bright", TensorDataset(images, labels), TensorDataset(held_out, torch.arange(75) % 2), classes=2)
    return finetune(model, task, budget_flops=2e8, schedule=lambda spent: 1.0, **options)


def main() -> None:
    """Every process takes its share; the first one writes the curve."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    found = curve(accelerator=accelerator, batch_size=TOGETHER // accelerator.num_processes)
    if accelerator.is_main_process:
        Path(sys.argv[1]).write_text(json.dumps({"processes": accelerator.num_processes, **found.to_dict()}))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    # One exit of thirty aborts in gloo's threads, when the curve is long written: past the interpreter's shutdown.
    os._exit(0)


if __name__ == "__main__":
    main()
