# Posology on a CPU server: `posology serve` by default, any other command too. See docs/container.md.
#
#   docker build --tag posology .
#
# pip takes its packages from its default index, or from those that the build arguments PIP_INDEX_URL and
# PIP_EXTRA_INDEX_URL name: a mirror, or an index of CPU builds of PyTorch, which spares gigabytes of GPU libraries.

ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/posology
WORKDIR /source
# PyTorch is most of the image and seldom changes: a layer of its own.
COPY constraints.txt ./
RUN /opt/posology/bin/pip install --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY posology ./posology
RUN /opt/posology/bin/pip install --constraint constraints.txt '.[serve,export,demo]'

FROM python:${PYTHON}-slim
LABEL org.opencontainers.image.title="Posology" org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin posology
COPY --from=build /opt/posology /opt/posology
# Nothing is written but to /tmp, and nothing is fetched: other backbones than the bundled one are mounted at /models.
ENV PATH=/opt/posology/bin:$PATH HOME=/tmp HF_HOME=/models HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /tmp
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/readyz', timeout=4).close()"]
ENTRYPOINT ["posology"]
CMD ["serve", "--help"]
