# The job as a container image. Two variants, each from its own hash-locked list of packages:
#
#   docker build --build-arg VARIANT=cuda --build-arg SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)" \
#     --build-arg BASE_IMAGE=NAME@sha256:DIGEST --secret id=pip,src=pip.conf -t confidential-trainer .
#
# BASE_IMAGE is a Debian with Python 3.11 as `python3`; for cuda one that has a C compiler, which kernels compiled at
# run time need; g++ and Python's headers where jobs say train.torch_compile. Training on a CPU is quicker where it has
# libtcmalloc-minimal4. It has no default: whoever builds must have chosen its digest. The secret `pip` is pip's
# configuration, for those whose packages come from an index of their own; it leaves no trace in the image.
ARG BASE_IMAGE

FROM ${BASE_IMAGE} AS build
ARG BASE_IMAGE
ARG VARIANT=cuda
ARG SOURCE_DATE_EPOCH=0
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN [[ ${BASE_IMAGE} =~ @sha256:[0-9a-f]{64}$ ]] \
    || { echo "expected BASE_IMAGE by digest, got ${BASE_IMAGE}" >&2; exit 2; }
ENV PYTHONDONTWRITEBYTECODE=1 PIP_NO_COMPILE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY requirements/image-${VARIANT}.txt requirements.txt
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /opt/trainer \
    && /opt/trainer/bin/pip install --no-deps --require-hashes --only-binary :all: -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
# Without trainer/simulator, which .dockerignore leaves out: nothing in the image can forge evidence.
COPY trainer trainer
# The lock holds what builds the project, so nothing unlocked is fetched here. What only installs leaves the image, and
# every file gets the same time: the same inputs give the same layer. The bytecode too, which holds its source's hash
# in place of a time: without it each start of a job would compile three thousand modules, and could not keep them. A
# package's file for a later Python stays without; the project's own must be there.
RUN /opt/trainer/bin/pip install --no-deps --no-build-isolation --no-index . \
    && /opt/trainer/bin/pip uninstall --yes pip \
    && find /opt/trainer -name direct_url.json -delete \
    && find /opt/trainer -name __pycache__ -prune -exec rm -rf {} + \
    && { PYTHONHASHSEED=0 /opt/trainer/bin/python -m compileall -qq --invalidation-mode unchecked-hash \
        /opt/trainer/lib || true; } \
    && find /opt/trainer/lib -path "*/trainer/training/__pycache__/run.*.pyc" | grep --quiet . \
    && [ -z "$(find /opt/trainer/lib -path "*/trainer/simulator*")" ] \
    && find /opt/trainer -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH}" {} +

FROM ${BASE_IMAGE}
ARG SOURCE_DATE_EPOCH=0
# Accounts for the two children: `front` has the network and no plaintext, `worker` has plaintext and no network. A
# container that lacks the capabilities to switch users, which configs/docker-compose.yaml gives, runs all as one.
RUN groupadd --system --gid 901 front && groupadd --system --gid 902 worker \
    && useradd --system --uid 901 --gid 901 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin front \
    && useradd --system --uid 902 --gid 902 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin worker \
    && rm -rf /var/log/* /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- \
    && install -d -m 0755 /etc/trainer /var/lib/trainer /run/trainer \
    && touch --date="@${SOURCE_DATE_EPOCH}" /etc /etc/passwd /etc/group /etc/shadow /etc/gshadow \
        /etc/trainer /run /run/trainer /var/lib /var/lib/trainer /var/log
COPY --from=build /opt/trainer /opt/trainer
# Nothing is written outside /run/trainer and /tmp (tmpfs) and /var/lib/trainer (ciphertext): the root file system
# may be read-only.
ENV PATH=/opt/trainer/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    DO_NOT_TRACK=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 8443
# Starts as root: the supervisor, which holds the keys.
ENTRYPOINT ["trainer", "run"]
CMD ["/etc/trainer/job.yaml"]
