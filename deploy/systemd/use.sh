#!/bin/sh
# use.sh VERSION: has this machine's processes run a version that install.sh has put there. Migrates the database, then
# restarts one process after the other, each when the one before is ready. If one is not, those after it are left alone.
set -eu

version=${1:?which version: one of $(ls /opt/leaderboard)}
program=/opt/leaderboard/$version/bin/leaderboard
if [ ! -x "$program" ]; then
    echo "$version is not installed; there are: $(ls /opt/leaderboard | tr '\n' ' ')" >&2
    exit 1
fi
cd /etc/leaderboard
runuser -u leaderboard -- "$program" migrate
ln -sfn "$version" /opt/leaderboard/next
mv -T /opt/leaderboard/next /opt/leaderboard/current

for unit in $(systemctl list-units --plain --no-legend 'leaderboard@*.service' | cut -d' ' -f1); do
    systemctl restart "$unit"
    port=${unit#leaderboard@}
    waited=0
    until curl --silent --fail --max-time 2 --output /dev/null "http://127.0.0.1:${port%.service}/readyz"; do
        waited=$((waited + 1))
        if [ $waited = 30 ]; then
            echo "$unit is not ready; the processes after it still run the version before" >&2
            exit 1
        fi
        sleep 1
    done
    echo "$unit is ready"
done
