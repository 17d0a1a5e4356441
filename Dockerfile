# Two stages: the first builds, with tools; the second runs, without any.
#   docker build -t leadkeep .
#   docker run -e LEADKEEP_ALLOW_PLAINTEXT=1 -p 127.0.0.1:50051:50051 -p 127.0.0.1:8080:8080 -v leadkeep:/var/lib/leadkeep leadkeep

FROM python:3.13-slim-bookworm AS builder
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 UV_NO_CACHE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never \
    UV_COMPILE_BYTECODE=1
WORKDIR /build

# The locks alone first: as long as they stay, this layer is reused and a build takes seconds.
COPY requirements-uv.lock requirements.lock requirements-dev.lock ./
RUN pip install --require-hashes -r requirements-uv.lock \
 && uv venv /opt/leadkeep \
 && uv pip install --python /opt/leadkeep/bin/python --require-hashes -r requirements.lock

# The build backend is not part of requirements.lock; its version and hash come from the development lock.
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY generated generated
RUN uv build --wheel --out-dir dist --require-hashes --build-constraints requirements-dev.lock \
 && uv pip install --python /opt/leadkeep/bin/python --no-deps dist/*.whl


FROM python:3.13-slim-bookworm
# The system's pip is of no use here: nothing is installed at run time.
RUN python -m pip uninstall --yes --root-user-action ignore pip \
 && groupadd --gid 10001 leadkeep \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/leadkeep --shell /usr/sbin/nologin leadkeep \
 && install --directory --owner leadkeep --group leadkeep --mode 0700 /var/lib/leadkeep
# The same path as in the builder: a virtual environment's scripts name their interpreter in full.
COPY --from=builder /opt/leadkeep /opt/leadkeep

# Inside a container loopback reaches nobody, so the doors listen on every interface. That needs LEADKEEP_TLS_CERT
# and LEADKEEP_TLS_KEY, or LEADKEEP_ALLOW_PLAINTEXT=1 where something in front ends TLS or the network is private.
# The image chooses neither: without one the service refuses to start and says so.
ENV PATH=/opt/leadkeep/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONFAULTHANDLER=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LEADKEEP_DATA_DIR=/var/lib/leadkeep \
    LEADKEEP_GRPC_ADDRESS=0.0.0.0:50051 \
    LEADKEEP_HTTP_ADDRESS=0.0.0.0:8080

# By number: Kubernetes' runAsNonRoot cannot check a name.
USER 10001:10001
# A .env file is looked for in the working folder; the data folder is the one that the operator mounts.
WORKDIR /var/lib/leadkeep
VOLUME /var/lib/leadkeep
EXPOSE 50051 8080
STOPSIGNAL SIGTERM

# /readyz is 200 only while leads can be taken. With a certificate the door speaks TLS; the probe stays inside the
# container, so it does not check the name. Where client certificates are required, a probe has none: use the
# orchestrator's TCP probe there and switch this one off.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, ssl, urllib.request as u; tls = os.environ.get('LEADKEEP_TLS_CERT'); port = os.environ['LEADKEEP_HTTP_ADDRESS'].rpartition(':')[2]; u.urlopen(f\"http{'s' if tls else ''}://127.0.0.1:{port}/readyz\", timeout=2, context=ssl._create_unverified_context() if tls else None)"]

ENTRYPOINT ["leadkeep"]
CMD ["serve"]
