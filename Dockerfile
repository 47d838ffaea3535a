# Images of the server, for the CPU (the default) and for NVIDIA GPUs:
#
#   docker build --target cpu --tag loom_gguf .
#   docker build --target cuda --tag loom_gguf:cuda .
#
# Both listen on port 11434 as an ordinary user, and look for .gguf files in /models. See compose.yaml.
# The health check asks for /, which answers without a key.

ARG CUDA=12.8.1

# -- for the CPU --------------------------------------------------------------------------------------------------

FROM python:3.12-slim AS build-cpu
RUN apt-get update && apt-get install --yes --no-install-recommends build-essential cmake git ninja-build \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
# Not for this machine's processor alone: the image may run on another one.
ENV CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF"
RUN python -m venv /opt/loom
# llama.cpp takes minutes to compile: in a layer of its own, so that a change of the package does not repeat it.
COPY pyproject.toml ./
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/loom/bin/pip install "$(grep -o 'llama-cpp-python==[0-9.]*' pyproject.toml | head -n 1)"
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip /opt/loom/bin/pip install .

FROM python:3.12-slim AS cpu
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* && useradd --create-home --uid 1000 loom \
    && mkdir --parents /models /home/loom/.local/share/loom_gguf && chown --recursive loom /models /home/loom
COPY --from=build-cpu /opt/loom /opt/loom
USER loom
ENV PATH=/opt/loom/bin:$PATH LOOM_HOST=0.0.0.0 LOOM_MODELS_DIR=/models
EXPOSE 11434
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:11434/', timeout=4)"]
ENTRYPOINT ["loom-gguf"]
CMD ["serve"]

# -- for NVIDIA GPUs ----------------------------------------------------------------------------------------------

FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04 AS build-cuda
RUN apt-get update && apt-get install --yes --no-install-recommends \
    build-essential cmake git ninja-build python3 python3-dev python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /source
# The driver's library is not in the image; its stub is enough to link with.
ENV CMAKE_ARGS="-DGGML_CUDA=on -DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF" \
    LIBRARY_PATH=/usr/local/cuda/lib64/stubs
RUN ln -s /usr/local/cuda/lib64/stubs/libcuda.so /usr/local/cuda/lib64/stubs/libcuda.so.1 \
    && python3 -m venv /opt/loom
COPY pyproject.toml ./
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/loom/bin/pip install "$(grep -o 'llama-cpp-python==[0-9.]*' pyproject.toml | head -n 1)"
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    LD_LIBRARY_PATH=/usr/local/cuda/lib64/stubs /opt/loom/bin/pip install .

FROM nvidia/cuda:${CUDA}-runtime-ubuntu24.04 AS cuda
# Ubuntu's image has a user with the number 1000 already.
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 python3 \
    && rm -rf /var/lib/apt/lists/* && (userdel --remove ubuntu || true) && useradd --create-home --uid 1000 loom \
    && mkdir --parents /models /home/loom/.local/share/loom_gguf && chown --recursive loom /models /home/loom
COPY --from=build-cuda /opt/loom /opt/loom
USER loom
ENV PATH=/opt/loom/bin:$PATH LOOM_HOST=0.0.0.0 LOOM_MODELS_DIR=/models
EXPOSE 11434
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:11434/', timeout=4)"]
ENTRYPOINT ["loom-gguf"]
CMD ["serve"]

# What `docker build` without a target makes.
FROM cpu
