"""A classifier as an ONNX file: written by `write`, run by `Session`."""

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import cfmlc_jax
from cfmlc_jax.errors import InputError, RunError
from cfmlc_jax.export.onnx_graph import BATCH, IMAGES, Graph, Value, traced

# Versions of the operators. From the oldest on, reductions and paddings take their axes as inputs.
OLDEST, DEFAULT, NEWEST = 18, 18, 23
_MOST_BYTES = 2**31 - 2**20  # of a file in protobuf


def require_packages() -> None:
    """Raise unless the packages are installed that write and run ONNX files.

    Raises:
        InputError: one is missing.
    """
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"a .onnx file needs the package {missing[0]}: pip install 'cfmlc_jax[onnx]'")


def require_opset(opset: int) -> None:
    """Raise unless files of this opset can be written.

    Raises:
        InputError: it is too old or too new.
    """
    if not OLDEST <= opset <= NEWEST:
        age = "old" if opset < OLDEST else "new"
        raise InputError(
            f"--opset={opset} is too {age}: the operators of these models are written for {OLDEST} to {NEWEST}; omit it "
            f"for {DEFAULT}"
        )


def write(path: Path, function: Callable, size: int, about: dict[str, Any], opset: int) -> None:
    """Write a function of images uint8 [b, size, size, 3], b free.

    Each entry of the document is an entry of the file's metadata, as JSON.

    Args:
        path: of the file.
        function: images -> float32 arrays by name.
        size: side of the images, pixels.
        about: the document.
        opset: version of the operators.

    Raises:
        InputError: an operation is not written as ONNX, or the file would be larger than protobuf allows.
        OSError: the file cannot be written.
    """
    import onnx

    from cfmlc_jax.export.onnx_rules import RULES

    closed, names = traced(function, size)
    graph = Graph(onnx, RULES)
    images = Value(closed.in_avals[0].shape, IMAGES)
    results = graph.run(closed.jaxpr, closed.consts, [images])
    outputs = []
    for name, value, aval in zip(names, results, closed.out_avals, strict=True):
        graph.nodes.append(
            onnx.helper.make_node("Identity", [graph.name(graph.full(value, aval.shape))], [name])
        )
        shape = [BATCH, *aval.shape[1:]]
        outputs.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    image_info = onnx.helper.make_tensor_value_info(IMAGES, onnx.TensorProto.UINT8, [BATCH, size, size, 3])
    initializers = graph.initializers
    if sum(len(each.raw_data) for each in initializers) > _MOST_BYTES:
        raise InputError(f"{about['model']} is larger than the 2 GB of an ONNX file; export it as .stablehlo")
    opsets = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, about["model"], [image_info], outputs, initializers),
        opset_imports=opsets,
        ir_version=onnx.helper.find_min_ir_version_for(opsets),
        producer_name="cfmlc_jax",
        producer_version=cfmlc_jax.__version__,
    )
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in about.items()})
    onnx.checker.check_model(model)
    with path.open("wb") as file:
        file.write(model.SerializeToString())
        file.flush()
        os.fsync(file.fileno())


class Session:
    """An ONNX file, run by ONNX Runtime on the CPU: images uint8 [b, s, s, 3] -> arrays by name.

    Attributes:
        about: the document inside the file.

    Raises:
        RunError: ONNX Runtime cannot load the file.
    """

    def __init__(self, path: Path):
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        # They have no common base class.
        errors = tuple(
            each for each in vars(state).values() if isinstance(each, type) and issubclass(each, Exception)
        )
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except errors as error:
            reason = " ".join(str(error).split())[:300]
            raise RunError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load {path.name} ({reason}); export it as .stablehlo"
            ) from error
        properties = self._session.get_modelmeta().custom_metadata_map
        self.about: dict[str, Any] = {name: json.loads(text) for name, text in properties.items()}

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs by name."""
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, {IMAGES: images}), strict=True))
