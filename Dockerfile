# Training and everything around it, for Kubernetes and, by enroot, pyxis or apptainer, for Slurm.
#   docker build --build-arg REVISION="$(git rev-parse HEAD)" --tag ladd_dist .
# Every step is a script that the tests run, too; the whole was never built where it was written, for want of a builder.

# The wheels bring CUDA 13.2's libraries; the base brings what the driver is asked for. The digest is the one that public
# records of this tag give; compare it before you rely on it: docker buildx imagetools inspect TAG
ARG BASE=nvcr.io/nvidia/cuda:13.2.0-base-ubuntu24.04@sha256:36cccda4bebc3b0b1ebe1907ead8169cf144d45df890be871b36b304cf91145a

FROM ${BASE} AS installed
COPY container/packages.sh /build/container/
RUN /build/container/packages.sh build
# Dependencies alone: their layer, by far the largest, stays as it is when code changes.
WORKDIR /opt/ladd_dist
COPY pyproject.toml constraints.txt ./
COPY container/install.sh container/
RUN PIP_NO_CACHE_DIR=1 container/install.sh .venv .
# Seen by who has it on PYTHONPATH: diffusers looks for torchao, and warns in every process that finds it.
COPY container/beside.sh container/
RUN PIP_NO_CACHE_DIR=1 container/beside.sh .venv .venv/8bit torchao

FROM ${BASE}
COPY container/packages.sh /opt/ladd_dist/container/
RUN /opt/ladd_dist/container/packages.sh run
WORKDIR /opt/ladd_dist
COPY --from=installed /opt/ladd_dist/.venv .venv
COPY . .
# Every cache goes by HOME, so whoever starts the image can have them elsewhere: apptainer does, and our manifests. Any user
# may write to this one and to /tmp; under a read-only root, mount something on both.
RUN install --directory --mode=1777 /cache
ENV PATH=/opt/ladd_dist/.venv/bin:$PATH \
    PYTHONPATH=/opt/ladd_dist \
    PYTHONUNBUFFERED=1 \
    HOME=/cache
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ladd_dist" \
      org.opencontainers.image.description="Latent Adversarial Diffusion Distillation of SD3-class teachers" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="nvcr.io/nvidia/cuda:13.2.0-base-ubuntu24.04"
# No user of a name: Kubernetes and OpenShift choose a number of their own.
USER 10001:0
RUN python container/check.py && find /cache -mindepth 1 -delete
ENTRYPOINT []
CMD ["python", "launchers/train.py", "--help"]
