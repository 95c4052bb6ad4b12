# cfmlc_jax with the tested versions, on NVIDIA GPUs: docs/runs.md has the commands.
FROM python:3.11-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY cfmlc_jax cfmlc_jax
COPY configs configs
COPY docs docs
COPY scripts/serve_onnx.py scripts/serve_onnx.py
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:3.11-slim
# CUDA is in JAX's own packages: the host has the driver. cuda13 for drivers of version 580 and later; or "cuda12,torch".
ARG EXTRAS=cuda12
COPY constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt "$(echo /wheel/*.whl)[$EXTRAS]"
RUN useradd --create-home cfmlc && mkdir /workspace && chown cfmlc /workspace
USER cfmlc
# Downloaded weights and compiled programs stay in the volume, with the runs.
ENV CFMLC_CACHE=/workspace/.cache
WORKDIR /workspace
VOLUME /workspace
CMD ["cfmlc-train", "--help"]
