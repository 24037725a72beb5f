# CPU:  docker build --tag diffcse-scale .
# CUDA: docker build --tag diffcse-scale:cuda --build-arg TORCH=cu130 .
# then: docker run --rm --user "$(id -u)" --env HOME=/tmp -v "$PWD:/work" diffcse-scale train data.files=corpus.txt
#       with --gpus all --ipc host on GPUs
FROM python:3.12-slim
# a folder of download.pytorch.org/whl
ARG TORCH=cpu

# triton and torch.compile call a compiler while training
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/diffcse-scale
COPY constraints.txt .
RUN pip install --no-cache-dir --constraint constraints.txt --index-url https://download.pytorch.org/whl/${TORCH} --extra-index-url https://pypi.org/simple torch
COPY . .
RUN DS_BUILD_OPS=0 pip install --no-cache-dir --constraint constraints.txt ./kernels '.[eval,lora,onnx,plot,search]'

RUN useradd --create-home trainer && mkdir /work && chown trainer /work
USER trainer
WORKDIR /work
ENTRYPOINT ["diffcse-scale"]
CMD ["--help"]
