#!/bin/sh
# Installs this checkout into /opt/leaderboard/VERSION, beside the versions that are there, and prints VERSION.
# No process runs it before use.sh. docs/deploy.md tells the rest, under "A machine of your own".
set -eu
cd "$(dirname "$0")/../.."

version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
target=/opt/leaderboard/$version
if [ -e "$target" ]; then
    echo "$target is there already" >&2
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
