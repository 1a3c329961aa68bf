# The job as a container image, in two variants. `scripts/image` builds it, and docs/deploy.md names what else can:
#
#   buildah build --build-context wheels=FOLDER --build-arg VARIANT=cpu --build-arg BASE_IMAGE=NAME@sha256:DIGEST \
#     --build-arg SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)" .
#
# BASE_IMAGE is a Debian with Python 3.11 as `python3`; for cuda one that has a C compiler and Python's headers, since
# GPU kernels are compiled at run time; g++ too where jobs say train.torch_compile. Training on a CPU is quicker where it
# has libtcmalloc-minimal4. It has no default: whoever builds must have chosen its digest. The build context `wheels`
# is a folder with what requirements/image-VARIANT.txt and requirements/uv.txt lock: nothing is fetched during the build.
ARG BASE_IMAGE

FROM ${BASE_IMAGE} AS build
ARG BASE_IMAGE
ARG VARIANT=cuda
ARG SOURCE_DATE_EPOCH=0
RUN expr "${BASE_IMAGE}" : '.*@sha256:[0-9a-f]\{64\}$' >/dev/null \
    || { echo "expected BASE_IMAGE by digest, got ${BASE_IMAGE}" >&2; exit 2; }
RUN python3 -c "import sys; sys.exit(sys.version_info[:2] != (3, 11))" \
    || { echo "expected a base image with Python 3.11, got $(python3 --version)" >&2; exit 2; }
RUN [ "${VARIANT}" != cuda ] || { command -v gcc && python3 -c "import pathlib, sysconfig, sys; \
        sys.exit(not pathlib.Path(sysconfig.get_path('include'), 'Python.h').is_file())"; } \
    || { echo "expected a base image with gcc and Python's headers (python3-dev) for VARIANT=cuda" >&2; exit 2; }
ENV PYTHONDONTWRITEBYTECODE=1 UV_NO_CONFIG=1 UV_NO_CACHE=1 UV_OFFLINE=1 UV_LINK_MODE=copy \
    UV_PYTHON=/opt/trainer/bin/python
WORKDIR /build
COPY requirements/image-${VARIANT}.txt requirements/uv.txt ./
# uv installs by hash. It stays outside the environment, which gets no installer of its own.
RUN --mount=type=bind,from=wheels,target=/wheels \
    digest=$(sha256sum /wheels/uv-*.whl) && grep --quiet "${digest%% *}" uv.txt \
    && python3 -m zipfile -e /wheels/uv-*.whl uv && install uv/uv-*.data/scripts/uv /usr/local/bin/uv \
    && python3 -m venv --without-pip /opt/trainer \
    && uv pip install --no-deps --require-hashes --no-index --find-links /wheels --only-binary :all: \
        -r "image-${VARIANT}.txt"
COPY pyproject.toml README.md LICENSE ./
# Without trainer/simulator, which .dockerignore leaves out: nothing in the image can forge evidence.
COPY trainer trainer
# What the project is built with is locked too, and leaves the image again: torch names setuptools for building
# extensions, which no job does. So does what uv notes of the time.
RUN /opt/trainer/bin/python -c "from setuptools.build_meta import build_wheel; build_wheel('dist')" >/dev/null \
    && uv pip install --no-deps --no-index --find-links dist confidential-trainer \
    && uv pip uninstall setuptools \
    && find /opt/trainer/lib -name uv_cache.json -delete \
    && sed --in-place /uv_cache.json/d /opt/trainer/lib/python3.*/site-packages/confidential_trainer-*/RECORD \
    && [ -z "$(find /opt/trainer/lib -path "*/trainer/simulator*")" ]
# Without what no job uses: packages' tests and static libraries, and headers where nothing can include them.
RUN site=$(echo /opt/trainer/lib/python3.*/site-packages) \
    && find "$site" -type d '(' -name tests -o -path "$site/torch/test" -o -path "$site/pyarrow/include" ')' -prune \
        -exec rm -rf {} + \
    && find "$site" '(' -name "*.a" -o -path "$site/torch/bin/*" ! -name torch_shm_manager ')' -delete \
    && if ! command -v g++; then rm -rf "$site/torch/include" "$site/torch/share/cmake"; fi
# Every file gets the same time: the same inputs give the same layer. The bytecode too, which holds its source's hash in
# place of a time: without it each start of a job would compile three thousand modules, and could not keep them. A
# package's file for a later Python stays without; the project's own must be there.
RUN find /opt/trainer -name __pycache__ -prune -exec rm -rf {} + \
    && { PYTHONHASHSEED=0 /opt/trainer/bin/python -m compileall -qq -j 0 --invalidation-mode unchecked-hash \
        /opt/trainer/lib || true; } \
    && [ -n "$(find /opt/trainer/lib -path "*/trainer/training/__pycache__/run.*.pyc")" ] \
    && find /opt/trainer -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH}" {} +

FROM ${BASE_IMAGE}
ARG SOURCE_DATE_EPOCH=0
# Accounts for the two children: `front` has the network and no plaintext, `worker` has plaintext and no network. A
# container that lacks the capabilities to switch users, which configs/docker-compose.yaml gives, runs all as one. No
# program lends its owner's rights: all that change users do so by the capabilities of the container.
RUN groupadd --system --gid 901 front && groupadd --system --gid 902 worker \
    && useradd --system --uid 901 --gid 901 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin front \
    && useradd --system --uid 902 --gid 902 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin worker \
    && find / -xdev -type f -perm /6000 -exec chmod ug-s {} + \
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
