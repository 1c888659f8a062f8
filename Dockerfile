# Frontrow on NVIDIA's Triton Server, GPU by default. A bundle is mounted at /bundles:
#   docker build -t frontrow .
#   docker run --gpus all --shm-size 1g -p 8000-8002:8000-8002 -v $PWD/bundles:/bundles:ro frontrow
ARG TRITON=26.07-py3

FROM nvcr.io/nvidia/tritonserver:${TRITON} AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-deps --wheel-dir /wheel .

FROM nvcr.io/nvidia/tritonserver:${TRITON}
# tritonserver comes with the image; the wheel brings the models, pip torch (a CUDA build) and FAISS.
RUN --mount=from=wheel,source=/wheel,target=/wheel \
    pip install --no-cache-dir "$(echo /wheel/frontrow-*.whl)[client,model]"
# UID 1000 is the image's own user for running without root.
USER 1000
WORKDIR /tmp
EXPOSE 8000 8001 8002
HEALTHCHECK --start-period=120s CMD curl --fail --silent http://localhost:8000/v2/health/ready
ENTRYPOINT ["frontrow", "serve", "--host", "0.0.0.0", "--bundles", "/bundles", "--log", "/tmp/server.log"]
