"""The measurements of PyTorch."""

from pathlib import Path

import torch

from scripts.benchmark import inputs, pytorch_layers, pytorch_models
from scripts.benchmark.result import Work, timed


def _work(run, flops, flags) -> Work:
    cuda = flags.torch_device == "cuda"

    def synchronous():
        run()
        if cuda:
            torch.cuda.synchronize()

    return Work(
        timed(synchronous),
        flops,
        torch.cuda.get_device_name() if cuda else "cpu",
        flags.torch_device,
        torch.cuda.max_memory_allocated if cuda else None,
    )


def matmul(flags) -> Work:
    """A product of square matrices, the ceiling."""
    side = inputs.matmul_side("gpu" if flags.torch_device == "cuda" else "cpu")
    matrix = torch.from_numpy(inputs.matrix(side)).to(flags.torch_device)
    return _work(lambda: matrix @ matrix, 2.0 * side**3, flags)


def layer(name: str, flags) -> Work:
    """The gradients of one layer, a key of `inputs.LAYERS`."""
    return _work(pytorch_layers.step(name, flags.torch_device), 0.0, flags)


def train(flags) -> Work:
    """PAT-T's update."""
    training = pytorch_models.Training(flags.model, *inputs.batch(flags), device=flags.torch_device)
    return _work(training.run, 0.0, flags)


def forward(flags) -> Work:
    """The combined prediction."""
    views, _ = inputs.batch(flags)
    forward = pytorch_models.Forward(flags.model, views, inputs.CLASSES, device=flags.torch_device)
    return _work(forward.run, 0.0, flags)


def reading(flags) -> Work:
    """A DataLoader on photos."""
    paths = inputs.photos_in(Path(flags.images))
    paths *= inputs.epochs_of(flags, len(paths))
    loader = pytorch_models.batches(
        paths,
        size=flags.size,
        grid=flags.grid,
        labels=inputs.labels(len(paths)),
        batch_size=flags.batch,
        workers=flags.workers,
    )
    return Work(lambda: inputs.images_per_time(iter(loader), flags))
