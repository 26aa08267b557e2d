# octfast on a CPU, run by an ordinary user:
#   docker build -t octfast .
#   docker run --rm -v "$PWD:/data" -v octfast-cache:/cache --user "$(id -u):$(id -g)" octfast train /data/scans
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

# Where torch comes from: its CPU wheels, a tenth of those with CUDA. For an NVIDIA card build with
# --build-arg TORCH_INDEX=https://pypi.org/simple and run with --gpus all.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Extras to install, as in --build-arg EXTRAS=onnx,openvino
ARG EXTRAS=""

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1

# First and alone, as it is large and seldom changes.
RUN pip install --index-url "${TORCH_INDEX}" torch torchvision

COPY . /tmp/octfast
RUN pip install "/tmp/octfast${EXTRAS:+[${EXTRAS}]}" && rm -rf /tmp/octfast

# Weights and stored activations go where a volume can be mounted, writable for any --user.
ENV HOME=/home/octfast OCTFAST_CACHE=/cache/octfast TORCH_HOME=/cache/torch HF_HOME=/cache/huggingface \
    MPLCONFIGDIR=/tmp/matplotlib FASTAI_HOME=/tmp/fastai
RUN useradd --uid 1000 --create-home octfast && mkdir -p /data /cache && chmod 1777 /data /cache
USER octfast
WORKDIR /data
ENTRYPOINT ["octfast"]
CMD ["--help"]
