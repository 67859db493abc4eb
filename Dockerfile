# The image of the application: web, worker and the one-shot that makes the secrets differ only in their command.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS packages
COPY requirements.txt /requirements.txt
# Wheels only, so that neither this stage nor the next needs a compiler. The environment gets no pip of its own.
RUN python -m venv --without-pip /opt/venv \
 && python -m pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check \
        --only-binary :all: --require-hashes -r /requirements.txt

FROM ${PYTHON_IMAGE}
COPY --from=packages /opt/venv /opt/venv
WORKDIR /app
# .dockerignore decides what these patterns may see.
COPY *.py ./
COPY api/ api/
COPY bambu/ bambu/
COPY delivery/ delivery/
COPY farm/ farm/
COPY migrations/ migrations/
COPY templates/ templates/
# A root that is read-only at run time keeps no bytecode, hence it is compiled here. A volume takes over the owner and
# mode of the folder it is first mounted on.
RUN /opt/venv/bin/python -m compileall -q . \
 && install -d -o 10001 -g 10001 -m 0750 /data /secrets
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    FLASK_ENV=production \
    HOST=0.0.0.0 \
    PORT=5000 \
    DATA_DIR=/data
USER 10001:10001
VOLUME ["/data"]
EXPOSE 5000
STOPSIGNAL SIGTERM
# http.client follows no redirect and asks no proxy: only a 200 from this very process is healthy.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-I", "-c", "import http.client, os, sys; probe = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); probe.request('GET', '/livez'); sys.exit(probe.getresponse().status != 200)"]
CMD ["python", "-m", "gunicorn", "app:create_app()"]
