#!/bin/sh
# Installs this checkout in /opt/leaderboard/VERSION, beside the installed versions, and prints VERSION.
# use.sh switches the processes to it. How to use both: docs/deploy.md, "systemd".
set -eu
cd "$(dirname "$0")/../.."

version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
target=/opt/leaderboard/$version
if [ -e "$target" ]; then
    echo "$target already exists" >&2
    exit 1
fi
build=$(mktemp -d)
trap 'rm -rf "$build"; [ -e "$target/complete" ] || rm -rf "$target"' EXIT

python3 -m venv "$build/venv"
pip="$build/venv/bin/python -m pip --quiet --disable-pip-version-check"
$pip install --require-hashes --requirement requirements-build.txt
$pip wheel --no-deps --no-build-isolation --wheel-dir "$build" .
python3 -m venv --without-pip "$target"
$pip --python "$target/bin/python" install --require-hashes --requirement requirements.txt
$pip --python "$target/bin/python" install --no-deps "$build"/leaderboard-*.whl
touch "$target/complete"
echo "$version"
