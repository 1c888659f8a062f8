# Frontrow on NVIDIA's Triton Server, GPU by default. A bundle is mounted at /bundles:
#   docker build -t frontrow:gpu .
#   docker run --gpus all --shm-size 1g -p 8000-8002:8000-8002 -v $PWD/bundles:/bundles:ro frontrow:gpu
# Without a GPU, with the Triton Server that a wheel brings and no CUDA:
#   docker build --target cpu -t frontrow:cpu .
ARG TRITON=26.07-py3
ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:${PYTHON} AS cpu
# With the versions of constraints.txt, torch's as a CPU build.
RUN --mount=from=wheel,source=/wheel,target=/wheel \
    --mount=from=wheel,source=/source/constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir --constraint /constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu \
    "$(sed -n 's/^\(torch==.*\)$/\1+cpu/p' /constraints.txt)" "$(echo /wheel/frontrow-*.whl)[serve]" \
    && useradd --uid 1000 --create-home frontrow
# The wheel's server is laid out now, so that nothing needs to be written there later.
ENV XDG_CACHE_HOME=/opt/cache
RUN ["python3", "-c", "from frontrow.serving.triton_server import find_tritonserver; find_tritonserver()"]
USER 1000
WORKDIR /tmp
EXPOSE 8000 8001 8002
HEALTHCHECK --start-period=120s \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://localhost:8000/v2/health/ready')"]
ENTRYPOINT ["frontrow", "serve", "--host", "0.0.0.0", "--bundles", "/bundles", "--log", "/dev/stdout"]

FROM nvcr.io/nvidia/tritonserver:${TRITON} AS gpu
# tritonserver comes with the image; the wheel brings the models, pip torch (a CUDA build) and FAISS.
RUN --mount=from=wheel,source=/wheel,target=/wheel \
    PIP_BREAK_SYSTEM_PACKAGES=1 pip install --no-cache-dir "$(echo /wheel/frontrow-*.whl)[client,model]"
# UID 1000 is the image's own user for running without root.
USER 1000
WORKDIR /tmp
EXPOSE 8000 8001 8002
HEALTHCHECK --start-period=120s \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://localhost:8000/v2/health/ready')"]
ENTRYPOINT ["frontrow", "serve", "--host", "0.0.0.0", "--bundles", "/bundles", "--log", "/dev/stdout"]
