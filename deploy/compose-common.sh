# Functions shared by compose-test.sh and compose-scale-test.sh. They set project, files and port (the default of PORT).
# shellcheck shell=bash disable=SC2154
export PORT=${PORT:-$port} IMAGE=$project BIND_ADDRESS=127.0.0.1
url=http://127.0.0.1:$PORT
scratch=$(mktemp -d)
reader=
failures=0

compose() {  # without .env, so that the defaults are tested
    timeout 300 docker compose --project-name "$project" --env-file /dev/null "${files[@]}" "$@"
}

finish() {
    local status=$?
    [ -z "$reader" ] || kill "$reader" 2>/dev/null || true
    if [ "$status" != 0 ] && [ ! -e "$scratch/done" ]; then
        echo "stopped at an error; the last lines of the logs:"
        compose logs --no-color --tail 20 2>&1 | tail -60 || true
    fi
    [ -n "${KEEP:-}" ] || compose down --volumes --rmi local --remove-orphans >/dev/null 2>&1 || true
    rm -rf "$scratch"
}
trap finish EXIT
# Without this trap, Ctrl-C ends docker, and bash continues with the next command.
trap 'exit 130' INT
trap 'exit 143' TERM HUP

done_testing() {
    touch "$scratch/done"
    say "$([ $failures = 0 ] && echo "all ok" || echo "$failures FAILED")"
    [ $failures = 0 ]
}

say() { printf '\n%s\n' "$*"; }

check() {  # check WHAT COMMAND…: prints ok or FAILED
    local what=$1
    shift
    if "$@"; then echo "  ok      $what"; else
        echo "  FAILED  $what"
        failures=$((failures + 1))
    fi
}

refute() { if "$@"; then return 1; fi; }

status() {  # status EXPECTED CURL-ARGUMENTS…
    local expected=$1 got
    shift
    got=$(curl -s -m 10 -o "$scratch/body" -w '%{http_code}' "$@") || true
    [ "$got" = "$expected" ] || { echo "          got $got: $(head -c 300 "$scratch/body")"; return 1; }
}

post() { local path=$1 body=$2; shift 2; status "$@" -H 'content-type: application/json' -d "$body" "$url$path"; }

within() {  # within SECONDS COMMAND…: retries until it succeeds
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.1
    done
}

up() {  # up ARGUMENTS…: starts the services and waits until all are healthy
    compose up --detach --wait --wait-timeout 120 --quiet-pull "$@" >"$scratch/up" 2>&1 || { tail -5 "$scratch/up"; return 1; }
}
ms() { echo $(($(date +%s%N) / 1000000)); }
verified() { compose run --rm -T --no-deps api verify >"$scratch/verify" 2>"$scratch/verify.err" || { tail -5 "$scratch"/verify*; return 1; }; }
