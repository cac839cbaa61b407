#!/usr/bin/env bash
# Prints one line for .env per image of the Compose files: its default tag, pinned to the tag's present digest.
# Prints nothing unless all digests are found.
set -euo pipefail
cd "$(dirname "$0")/.."

lines=
while read -r name image; do
    digest=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$image" </dev/null)
    if ! [[ $digest =~ ^sha256:[0-9a-f]{64}$ ]]; then
        echo "no digest of $image: $digest" >&2
        exit 1
    fi
    lines+="$name=$image@$digest"$'\n'
done < <(sed -nE 's/.*\$\{([A-Z]+_IMAGE):-([^}]+)\}.*/\1 \2/p' compose.yaml compose.scale.yaml | awk '!seen[$0]++')
printf %s "$lines"
