# The set-up of setup.sh on a GPU box: NVIDIA's driver and container toolkit on the host, everything else in here.
# The code lies in /app; commands start in /data, so that relative paths land in a volume. README.md has the lines to run.
FROM python:3.11-slim-bookworm

# README.md's list of packages: interpreter, venv and headers are part of this base image, there is left g++, for
# torch.compile, which builds its kernels where it runs. ViZDoom's wheel brings its own libraries.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 player \
    && mkdir -p /app /data /runs \
    && chown player:player /app /data /runs
USER player
WORKDIR /app

# The packages change less often than the code: this layer stays. PyTorch's wheels from PyPI bring CUDA themselves.
COPY --chown=player:player setup.sh vizdoom_requirements.txt diffusion_requirements.txt ./
COPY --chown=player:player tests/requirements.txt tests/
COPY --chown=player:player ViZDoomPPO/ray_requirements.txt ViZDoomPPO/
RUN bash setup.sh --cuda
COPY --chown=player:player . .

# Caches belong to the volume too, whoever the container runs as (docker run --user).
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/data/.cache/huggingface \
    XDG_CACHE_HOME=/data/.cache \
    TORCHINDUCTOR_CACHE_DIR=/data/.cache/inductor \
    TRITON_CACHE_DIR=/data/.cache/triton
VOLUME ["/data", "/runs"]
WORKDIR /data
CMD ["bash"]
