"""Published peak rates of accelerators, for the share of them that a run reaches (MFU)."""

import jax

# 10¹² operations a second of matrix products in bfloat16, accumulated in float32, without sparsity: of a device by its
# `device_kind` in JAX. NVIDIA: the data sheets and architecture white papers of each card. TPU: "System
# architecture" of each version in Google Cloud's documentation; of v2 and v3 a device is one of a chip's two cores.
BFLOAT16 = {
    "NVIDIA A10": 125.0,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA GeForce RTX 3090": 71.0,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H200": 989.4,
    "NVIDIA L4": 121.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA RTX A6000": 154.8,
    "TPU v2": 22.5,
    "TPU v3": 61.5,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5": 459.0,
    "TPU v6 lite": 918.0,
}


def flops_per_second(mesh: jax.sharding.Mesh) -> float | None:
    """The peak rate of all devices of a mesh together; None for devices whose peak is not known, such as CPUs."""
    peak = BFLOAT16.get(mesh.devices.flat[0].device_kind)
    return None if peak is None else 1e12 * peak * mesh.devices.size
