#!/usr/bin/env bash
# Tests compose.yaml with compose.scale.yaml in Docker, in a Compose project of its own that it removes at the end, and
# prints each check: that all API containers serve and are scraped, that the Sentinels fail over, and the reads and writes
# meanwhile. It needs python3 for the reads and writes.
#
#   PORT=3999 KEEP=1 deploy/compose-scale-test.sh        another port than 3910; do not remove the project
#   SUBNET=10.99.0 deploy/compose-scale-test.sh          another network than 172.30.84.0/24
#   CADDY_IMAGE=… deploy/compose-scale-test.sh           another image; also PROMETHEUS_, PYTHON_, POSTGRES_, REDIS_IMAGE
set -euo pipefail
cd "$(dirname "$0")/.."

port=3910
project=leaderboard-compose-scale-test
files=(--file compose.yaml --file compose.scale.yaml)
. deploy/compose-common.sh
export PROMETHEUS_PORT=${PROMETHEUS_PORT:-$((PORT + 1))} SUBNET=${SUBNET:-172.30.84}
prometheus=http://127.0.0.1:$PROMETHEUS_PORT
users=12000 # more than the cache holds
sentinels=(sentinel-1 sentinel-2 sentinel-3)
replicas=2

inside() { local replica=$1; shift; compose exec -T --index "$replica" api "$@"; }
container() { compose ps -aq "$1" | sed -n "${2:-1}p"; }
sentinel() { compose exec -T "${1:-sentinel-1}" redis-cli -p 26379 sentinel "${@:2}"; }

primary() {  # primary [SENTINEL]: the service that Sentinel 1, or this one, names as the primary
    case $(sentinel "${1:-sentinel-1}" get-master-addr-by-name leaderboard | head -1) in
    "$SUBNET.10") echo redis ;;
    "$SUBNET.11") echo redis-replica ;;
    esac
}
other() { case $1 in redis) echo redis-replica ;; *) echo redis ;; esac; }
is_primary() { [ "$(primary)" = "$1" ]; }

paired() {  # all Sentinels name the same primary, it is one, and the other server is its replica
    local named one
    named=$(for one in "${sentinels[@]}"; do primary "$one"; done | sort -u)
    [ "$(wc -w <<<"$named")" = 1 ] || return 1
    compose exec -T "$named" redis-cli role | head -1 | grep -qx master || return 1
    compose exec -T "$(other "$named")" redis-cli info replication | grep -q master_link_status:up
}

held() { compose exec -T "$1" redis-cli zcard '{leaderboard}:scores'; }  # held SERVER: the number of users in its cache
copied() { paired && [ "$(held redis)" -ge 10000 ] && [ "$(held redis)" = "$(held redis-replica)" ]; }

scraped() {  # scraped NUMBER: exactly this many targets are known, and all are up
    curl -s -m 5 "$prometheus/api/v1/targets?state=active" \
        | python3 -c 'import json, sys
targets = json.load(sys.stdin)["data"]["activeTargets"]
sys.exit([target["health"] for target in targets] != ["up"] * int(sys.argv[1]))' "$1"
}

refused_scrapes() { curl -s -m 5 "$prometheus/api/v1/targets?state=active" | grep -q 'returned HTTP status 401'; }

counted() {  # counted REPLICA PREFIX: the sum of the metrics whose line begins with PREFIX
    inside "$1" python -c 'import sys, urllib.request
lines = urllib.request.urlopen("http://127.0.0.1:3000/metrics").read().decode().splitlines()
print(int(sum(float(line.split()[-1]) for line in lines if line.startswith(sys.argv[1]))))' "$2"
}

all_serve() {  # every API container answers some reads through the proxy
    local replica before=() read
    for replica in $(seq "$replicas"); do before[replica]=$(counted "$replica" 'leaderboard_requests_total{route="/leaderboard/top/{n}"'); done
    for read in $(seq $((10 * replicas))); do status 200 "$url/leaderboard/top/10" || return 1; done
    for replica in $(seq "$replicas"); do
        read=$(($(counted "$replica" 'leaderboard_requests_total{route="/leaderboard/top/{n}"') - before[replica]))
        echo "          API container $replica answered $read"
        [ "$read" -gt 0 ] || return 1
    done
}

# Runs in an API container: prints the time and the numbers of reads answered by the cache and by PostgreSQL, until its
# input ends.
watch='import select, sys, time, urllib.request
while not select.select([sys.stdin], [], [], 0.1)[0]:
    counts = dict.fromkeys(("cache", "postgres"), 0)
    for line in urllib.request.urlopen("http://127.0.0.1:3000/metrics").read().decode().splitlines():
        for source in counts:
            if line.startswith("leaderboard_answers_total{source=\"%s\"" % source):
                counts[source] += int(float(line.split()[-1]))
    print(int(time.time() * 1000), counts["cache"], counts["postgres"], flush=True)'
# All watchers have the pipe as their input, which ends when `unwatch` closes it.
watch() {
    local replica
    rm -f "$scratch"/watched.* "$scratch/pipe"
    mkfifo "$scratch/pipe"
    for replica in $(seq "$replicas"); do
        while [ -e "$scratch/pipe" ]; do
            inside "$replica" python -c "$watch" >>"$scratch/watched.$replica" 2>/dev/null || sleep 0.2
        done <"$scratch/pipe" &
    done
    exec {pipe}>"$scratch/pipe"
}

unwatch() {
    rm "$scratch/pipe"
    exec {pipe}>&-
    wait
}

# Succeeds if each watched API container answered from the cache, and only from it, during the last second.
cached() {
    local file
    for file in "$scratch"/watched.*; do
        tail -10 "$file" | awk -v now="$(ms)" '
            NR == 1 { cache = $2; postgres = $3 }
            END { exit !(NR == 10 && now - $1 < 1000 && $2 > cache && $3 == postgres) }' || return 1
    done
}

cached_after() {  # cached_after MS: the time from then until the last read that PostgreSQL answered
    awk -v began="$1" '
        FNR == 1 { postgres = $3 }
        $3 > postgres { postgres = $3; if ($1 > began && $1 > last) last = $1 }
        END { if (last) printf "%.1f s", (last - began) / 1000; else printf "0 s: none" }' "$scratch"/watched.*
}

# fault NAME RECOVERED COMMAND…: runs the command while users are read and written. RECOVERED is a command that succeeds
# when everything has recovered.
fault() {
    local name=$1 recovered=$2 began traffic=0
    shift 2
    python3 deploy/check/traffic.py "$url" 1 >"$scratch/traffic" 2>&1 &
    reader=$!
    watch
    within 20 cached || echo "          (the cache was not in use before)"
    began=$(ms)
    "$@" >/dev/null 2>&1 || echo "          (the command failed)"
    check "$name: everything has recovered" within 60 "$recovered"
    echo "          after $(awk "BEGIN { printf \"%.1f\", ($(ms) - $began) / 1000 }") s"
    check "$name: all reads come from the cache again" within 30 cached
    echo "          the last read that did not: after $(cached_after "$began")"
    kill "$reader"
    wait "$reader" || traffic=$?
    reader=
    unwatch
    sed 's/^/          /' "$scratch/traffic"
    check "$name: no acknowledged score was lost, no read was stale" test $traffic = 0
    check "$name: all reads were answered" grep -qE '^reads   [0-9,]+ of 200;' "$scratch/traffic"
    check "$name: the cache equals PostgreSQL" verified
}
all_written() { [ "$(grep -cxE '(writes|keyed)   ?[0-9,]+ of 200' "$scratch/traffic")" = 2 ]; }
all_keyed_written() { grep -qxE 'keyed   [0-9,]+ of 200' "$scratch/traffic"; }

say "The files"
check "they are valid" compose config -q
check "the images build" compose --progress quiet build

say "The start"
began=$(ms)
check "all services come up" up
echo "          $(($(ms) - began)) ms"
check "the Sentinels make the second Redis a replica" within 60 paired
echo "          $(($(ms) - began)) ms since the start"
check "the API is not published" test -z "$(docker port "$(container api)")"
for service in proxy prometheus "${sentinels[@]}"; do
    check "$service: no root, no capabilities" compose exec -T "$service" sh -c 'test "$(id -u)" = 65534 && grep -q "CapEff:.*0000000000000000" /proc/1/status'
done

say "$users users through standard input"
seq "$users" | awk 'BEGIN { print "username,score,imageUrl" } { print "player" $1 "," $1 * 7919 % 1000003 ",https://img.example.com/avatars/" $1 ".png" }' >"$scratch/users.csv"
import() { compose run --rm -T --no-deps api import - <"$scratch/users.csv" >"$scratch/import" 2>&1; }
check "import" import
echo "          $(tail -1 "$scratch/import")"
check "the cache equals PostgreSQL" verified
check "the replica has the cache" within 10 copied

say "Two API containers"
check "both serve" all_serve
check "Prometheus scrapes both" within 30 scraped 2

say "Faults, while users are read and written"
kill_primary() {  # kill_primary SERVER: kills it and waits until the other is promoted
    docker kill "$(container "$1")"
    within 20 is_primary "$(other "$1")"
}
fault "the primary Redis is killed" true kill_primary redis
check "all writes were done" all_written
check "its replica is the primary now" is_primary redis-replica
compose start redis >/dev/null 2>&1
began=$(ms)
check "the old one becomes a replica, and has the cache" within 60 copied
echo "          $(($(ms) - began)) ms"
end() { compose exec -T "$1" redis-cli shutdown nosave || true; }  # the connection of redis-cli breaks, too
fault "the promoted Redis ends and restarts" paired end redis-replica
move() {  # move SENTINEL: another container takes its address meanwhile
    compose stop --timeout 1 "$1"
    compose run --rm --detach --no-deps --name "$project-guest" --entrypoint sleep api 60
    compose start "$1"
    docker rm --force "$project-guest"
}
fault "a Sentinel returns with another address" paired move sentinel-2
known() { sentinel "$1" master leaderboard | grep -A1 -x num-other-sentinels | tail -1; }  # the number of other Sentinels that it counts
both_know_two() { [ "$(known sentinel-1) $(known sentinel-3)" = "2 2" ]; }
check "the others recognise it by its id" within 10 both_know_two
# They have then lost their record of the failover.
fault "all Sentinels restart" paired compose restart --timeout 1 "${sentinels[@]}"
check "the primary is still the one that was promoted" is_primary redis-replica
enough() { [ "$(for one in "${sentinels[@]}"; do sentinel "$one" ckquorum leaderboard; done | grep -c '^OK 3 ')" = 3 ]; }
check "each has a quorum for a failover" within 10 enough
hang() { docker pause "$(container "$1")"; within 20 is_primary "$(other "$1")"; sleep 3; docker unpause "$(container "$1")"; }
fault "the primary Redis hangs until it is replaced, and longer" paired hang redis-replica
check "all writes were done" all_written
kill_replica() { docker kill "$(container api 2)"; sleep 3; docker start "$(container api 2)"; }
both_healthy() { [ "$(docker inspect -f '{{.State.Health.Status}}' "$(container api 1)" "$(container api 2)" | sort -u)" = healthy ]; }
fault "an API container is killed, and started 3 s later" both_healthy kill_replica
check "all writes with an Idempotency-Key were done" all_keyed_written
fault "an API container restarts gracefully" both_healthy docker restart --time 15 "$(container api 1)"
check "all writes with an Idempotency-Key were done" all_keyed_written

say "Three API containers"
replicas=3
check "the third comes up" up --scale api=3 --no-recreate
check "all serve" within 10 all_serve
check "Prometheus scrapes all" within 30 scraped 3
replicas=2
check "back to two" up --scale api=2 --no-recreate
check "both serve" all_serve
check "Prometheus scrapes both" within 30 scraped 2

say "With API keys and a rate limit by address"
compose run --rm -T --no-deps api key --name prometheus --scopes admin >"$scratch/key"
compose run --rm -T --no-deps api key --name game >"$scratch/game"
API_KEYS=$(sed -n 's/^entry *//p' "$scratch/key" "$scratch/game" | paste -sd,)
export API_KEYS RATE_LIMIT_PER_ADDRESS=50/hour
check "all services come up" up
check "Prometheus without a key is refused" within 30 refused_scrapes
PROMETHEUS_KEY=$(sed -n 's/^key *//p' "$scratch/key")
export PROMETHEUS_KEY
check "all services come up" up
check "with it, it scrapes both" within 30 scraped 2
check "a write without a key is refused" post /users/1/score '{"score": 7}' 401
check "a write with a key is not" post /users/1/score '{"score": 7}' 200 -H "authorization: Bearer $(sed -n 's/^key *//p' "$scratch/game")"
for read in $(seq 120); do curl -s -m 5 -o /dev/null "$url/leaderboard/top/10" || true; done
check "one address is limited" status 429 "$url/leaderboard/top/10"
check "also with another address in X-Forwarded-For" status 429 -H 'x-forwarded-for: 192.0.2.7' "$url/leaderboard/top/10"
check "another address is not" compose exec -T prometheus wget -q -O /dev/null http://proxy:3000/leaderboard/top/10

say "The stop"
began=$(ms)
compose stop >/dev/null 2>&1
echo "          $(($(ms) - began)) ms"
check "the API exited with status 0" test "$(docker inspect -f '{{.State.ExitCode}}' "$(container api 1)" "$(container api 2)" | sort -u)" = 0
done_testing
