# hrseg for CPUs: docker build -t hrseg . && docker run --rm hrseg --help (docs/install.md)
FROM python:3.12-slim AS wheel
WORKDIR /source
COPY . .
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /dist

FROM python:3.12-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends libxcb1 libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /dist/*.whl /tmp/
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu \
    && wheel=$(echo /tmp/hrseg-*.whl) \
    && pip install --no-cache-dir "$wheel[samples]" \
    && rm "$wheel" \
    && useradd --uid 1000 --create-home hrseg
USER hrseg
ENV XDG_CACHE_HOME=/tmp/cache
WORKDIR /work
ENTRYPOINT ["hrseg"]
CMD ["--help"]
