# The image of the service. The build needs no compiler, because every pinned requirement has a wheel for musl (and for
# glibc). The image contains no build tool, no pip and no database. How to run it: docs/deploy.md.
# compose.yaml has the same default image. Its publisher can move the tag; how to pin a digest: docs/deploy.md.
ARG PYTHON_IMAGE=python:3.13-alpine

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ONLY_BINARY=:all: \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY requirements.txt requirements-build.txt ./
RUN python -m venv --without-pip /opt/venv \
 && python -m pip --python /opt/venv/bin/python install --no-compile --require-hashes -r requirements.txt \
 && python -m pip install --no-compile --require-hashes -r requirements-build.txt
COPY LICENSE README.md pyproject.toml ./
COPY src src
# unchecked-hash: the bytecode stays valid if the copy below changes the files' times.
RUN python -m pip wheel --no-deps --no-index --no-build-isolation --wheel-dir dist . \
 && python -m pip --python /opt/venv/bin/python install --no-compile --no-deps --no-index dist/*.whl \
 && /opt/venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/venv/lib

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="leaderboard" \
      org.opencontainers.image.description="A leaderboard service with exact ranks on PostgreSQL and Redis" \
      org.opencontainers.image.licenses="MIT"
# Not adduser: its options differ between Alpine and Debian. `import` writes rejected rows to /data.
RUN echo 'leaderboard:x:10001:' >>/etc/group \
 && echo 'leaderboard:x:10001:10001::/data:/sbin/nologin' >>/etc/passwd \
 && install -d -o 10001 -g 10001 /data \
 && python -B -m pip uninstall --yes --quiet --root-user-action=ignore pip
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1
# Checks that no module is missing, and creates the bytecode of the modules it uses of the standard library, which the
# official images do not contain.
RUN leaderboard --help >/dev/null && python -c 'import http.client, multiprocessing.spawn'
ENV PYTHONDONTWRITEBYTECODE=1
WORKDIR /data
USER 10001:10001
EXPOSE 3000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-IS", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('PORT', 3000)), timeout=2); c.request('GET', '/livez'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["leaderboard"]
CMD ["serve"]
