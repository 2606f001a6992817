# lexiseg with CUDA:    docker build -t lexiseg:cuda .
# on the CPU:           docker build -t lexiseg --build-arg TORCH_INDEX=ADDRESS .
#                       with the --index-url that PyTorch's install page shows for "CPU": a tenth of the size
# segment pictures:     docker run --rm -it --user "$(id -u):$(id -g)" -v "$PWD:/data" -v lexiseg-cache:/cache lexiseg segment photo.jpg --classes "dog; grass"
# serve:                docs/serve.md
# on a GPU, add:        --gpus all
# train, add:           --shm-size 2g, for the batches that processes hand over
# CUDA's libraries are in PyTorch's wheels: the machine needs NVIDIA's driver and container toolkit alone.
FROM python:3.12-slim
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HOME=/cache/huggingface LEXISEG_CACHE=/cache/lexiseg HOME=/cache

# Fonts for names in all scripts.
RUN apt-get update && apt-get install -y --no-install-recommends fonts-noto-core fonts-noto-cjk libfribidi0 \
    && rm -rf /var/lib/apt/lists/*

# PyTorch by itself, so that a change of lexiseg does not install it again.
RUN pip install "torch>=2.11" "torchvision>=0.26" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}

COPY pyproject.toml README.md LICENSE THIRD_PARTY.md /source/
COPY src /source/src
RUN pip install "/source[drive,heic,serve,video]" && rm -rf /source \
    && useradd --no-create-home --home-dir /cache user && mkdir -p /cache /data && chmod 1777 /cache /data

USER user
WORKDIR /data
VOLUME /cache
ENTRYPOINT ["lexiseg"]
CMD ["--help"]
