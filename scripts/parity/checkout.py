"""Loads scripts of a checkout of MLC-PAT as modules and runs them unchanged on CPU.

Imports that the comparison does not need are replaced by stand-ins: compiled or outdated packages, downloads,
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
    """One of the checkout's training scripts as a module; nothing is written to the checkout.

    torchvision is used if it is installed. inplace_abn is always replaced, because it needs a GPU.

    Raises:
        InputError: an import is neither installed nor replaced, or torchvision is broken.
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
    # No mixed precision, which would hide the differences.
    namespace: Any = script
    namespace.autocast = contextlib.nullcontext
    namespace.GradScaler = PlainScaler
    return script


def has_torchvision() -> bool:
    """Whether the real torchvision is installed; it is imported now, before stand-ins that it would pick up.

    Raises:
        InputError: it is installed but cannot be imported.
    """
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:  # a build for another PyTorch
        reason = " ".join(str(error).split())
        raise InputError(
            f"torchvision cannot be imported ({reason}); install the release that goes with PyTorch "
            f"{torch.__version__}, or uninstall it to use a stand-in"
        ) from error
    return True


class PlainScaler:
    """A gradient scaler that does not scale."""

    def scale(self, loss):
        """Return the loss unchanged."""
        return loss

    def step(self, optimizer) -> None:
        """Take one step of the optimiser."""
        optimizer.step()

    def update(self) -> None:
        """Do nothing."""


@contextlib.contextmanager
def _importing(checkout, modules) -> Iterator[None]:
    """Let imports find the checkout and the stand-ins, without writing bytecode."""
    replaced = {name: sys.modules.get(name) for name in modules}
    parents = []
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent in modules:
            setattr(modules[parent], child, module)
        elif parent:  # the parent package is installed
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
    """Suppress what the checkout prints and warns about while it is imported and built."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _as_it_is(x, *_args, **_options):
    return x


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Make `.cuda()` and `torch.jit.script` return their argument unchanged."""
    with (
        mock.patch.object(torch.Tensor, "cuda", _as_it_is),
        mock.patch.object(nn.Module, "cuda", _as_it_is),
        mock.patch.object(torch.jit, "script", _as_it_is),
    ):
        yield


@contextlib.contextmanager
def untrained(models) -> Iterator[None]:
    """Build torchvision's ResNets without pre-trained weights, even if they are requested."""

    def without_weights(create):
        return lambda *, pretrained, **options: create(**options)

    with contextlib.ExitStack() as stack:
        for name in RESNETS:
            untrained = without_weights(getattr(models, name))
            stack.enter_context(mock.patch.object(models, name, untrained))
        yield
