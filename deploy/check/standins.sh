#!/usr/bin/env bash
# Makes stand-ins, from Debian 13, for the images that deploy/kubernetes/trial.yaml names, and the service's own image on
# top, for machines that can pull none. They prove our layers and manifests; they prove nothing about the official images.
# Needs root, podman and debootstrap. Afterwards `make deploy-check` runs the trial's pods.
set -euo pipefail
cd "$(dirname "$0")/../.."

version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
certificates=/etc/ssl/certs/ca-certificates.crt
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

image() {  # image NAME <DOCKERFILE: built on the base, in the folder with the certificates of this machine
    podman build --quiet --network host --format docker --tag "$1" --file - "$scratch/context"
}

mkdir "$scratch/context"
cp "$certificates" "$scratch/context/"
debootstrap --variant=minbase --include=ca-certificates trixie "$scratch/root" >"$scratch/log" || { tail "$scratch/log"; exit 1; }
tar -C "$scratch/root" -c . | podman import --quiet - localhost/standin:base
podman run --rm --network none localhost/standin:base true 2>/dev/null \
    || export CONTAINERS_CONF="$PWD/deploy/check/containers.conf"

cat >"$scratch/context/postgres.sh" <<'END'
#!/bin/sh
# Makes the database at the first start, then runs the server.
set -eu
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
chmod 755 "$scratch/context/postgres.sh"

image docker.io/library/postgres:18-alpine <<'END'
FROM localhost/standin:base
COPY ca-certificates.crt /etc/ssl/certs/
RUN groupadd -g 70 postgres && useradd -u 70 -g 70 -d /var/lib/postgresql postgres \
 && apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql-17 \
 && rm -rf /var/lib/postgresql/*
COPY postgres.sh /usr/local/bin/
ENV PATH=/usr/lib/postgresql/17/bin:$PATH PGDATA=/var/lib/postgresql/17/docker
STOPSIGNAL SIGINT
ENTRYPOINT ["postgres.sh"]
CMD ["postgres"]
END

image docker.io/valkey/valkey:9-alpine <<'END'
FROM localhost/standin:base
COPY ca-certificates.crt /etc/ssl/certs/
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends valkey-server
WORKDIR /data
CMD ["valkey-server"]
END

# In an environment of its own, as the Dockerfile removes pip, and Debian's is not pip's to remove.
image docker.io/library/python:3.13-alpine <<'END'
FROM localhost/standin:base
COPY ca-certificates.crt /etc/ssl/certs/
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv \
 && python3 -m venv /usr/local
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
END

podman build --quiet --network host --format docker --pull=never --volume "$certificates:$certificates:ro" \
    --tag "localhost/leaderboard:$version" .
