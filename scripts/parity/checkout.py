"""Scripts of a checkout of MLC-PAT as modules, run on CPU as they are.

What they import and the comparison can do without has stand-ins: compiled or outdated packages, downloads,
the GPU, half precision.
"""

import contextlib
import importlib
import importlib.util
import io
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from cfmlc_jax.errors import InputError
from scripts.parity.stand_ins import RESNETS, UNUSED, Unused, in_place_stand_in, torchvision_stand_in


def load_script(checkout: Path, file: str) -> types.ModuleType:
    """One of the checkout's training scripts as a module; nothing is written into the checkout.

    torchvision is the real one where it is installed; inplace_abn never, since it needs a GPU.

    Raises:
        InputError: it imports what is neither installed nor stood in for, or torchvision is broken.
    """
    modules: dict[str, types.ModuleType] = {name: Unused(name) for name in UNUSED}
    modules |= in_place_stand_in()
    if not has_torchvision():
        modules |= torchvision_stand_in()
    name = "mlc_pat_" + Path(file).stem.replace("-", "_").lower()
    spec = importlib.util.spec_from_file_location(name, checkout / file)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    with _importing(checkout, modules), on_cpu():
        try:
            spec.loader.exec_module(script)
        except ImportError as error:
            raise InputError(
                f"{checkout / file} cannot be imported ({error}); install what it lacks, or check out "
                "the commit that this comparison was written for (--help names it)"
            ) from error
    # float32 throughout: mixed precision would hide what is compared.
    namespace: Any = script
    namespace.autocast = contextlib.nullcontext
    namespace.GradScaler = PlainScaler
    return script


def has_torchvision() -> bool:
    """Whether the real torchvision is there. It is imported before any stand-in: it takes what it finds.

    Raises:
        InputError: it is installed and cannot be imported.
    """
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:  # a build for another PyTorch
        reason = " ".join(str(error).split())
        raise InputError(
            f"torchvision cannot be imported ({reason}); install the release that goes with PyTorch "
            f"{torch.__version__}, or remove it: a stand-in takes its place"
        ) from error
    return True


class PlainScaler:
    """A gradient scaler that scales nothing."""

    def scale(self, loss):
        """The loss itself."""
        return loss

    def step(self, optimizer) -> None:
        """One step of the optimiser."""
        optimizer.step()

    def update(self) -> None:
        """Nothing."""


@contextlib.contextmanager
def _importing(checkout, modules) -> Iterator[None]:
    """Imports find the checkout and the stand-ins, and leave no bytecode behind."""
    replaced = {name: sys.modules.get(name) for name in modules}
    parents = []
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent in modules:
            setattr(modules[parent], child, module)
        elif parent:  # of a package that is really there
            parents.append(mock.patch.object(importlib.import_module(parent), child, module, create=True))
    sys.modules.update(modules)
    try:
        with contextlib.ExitStack() as stack:
            for patch in parents:
                stack.enter_context(patch)
            stack.enter_context(mock.patch.object(sys, "path", [str(checkout), *sys.path]))
            stack.enter_context(mock.patch.object(sys, "dont_write_bytecode", True))
            stack.enter_context(quietly())
            yield
    finally:
        for name, module in replaced.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """What the checkout prints and warns of while it is imported and built is not the comparison's."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _as_it_is(x, *_args, **_options):
    return x


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """`.cuda()` stays on the CPU; scripted classes are run as Python."""
    with (
        mock.patch.object(torch.Tensor, "cuda", _as_it_is),
        mock.patch.object(nn.Module, "cuda", _as_it_is),
        mock.patch.object(torch.jit, "script", _as_it_is),
    ):
        yield


@contextlib.contextmanager
def untrained(models) -> Iterator[None]:
    """torchvision's ResNets are built without their weights, whatever is asked for."""

    def without_weights(create):
        return lambda *, pretrained, **options: create(**options)

    with contextlib.ExitStack() as stack:
        for name in RESNETS:
            untrained = without_weights(getattr(models, name))
            stack.enter_context(mock.patch.object(models, name, untrained))
        yield
