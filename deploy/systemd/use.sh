#!/bin/sh
# use.sh VERSION: switches this machine's processes to a version that install.sh has installed. It migrates the database,
# then restarts the processes one after the other. Each must be ready before the next is restarted; if one is not ready,
# the script stops there.
set -eu

version=${1:?VERSION is missing; one of: $(ls /opt/leaderboard)}
program=/opt/leaderboard/$version/bin/leaderboard
if [ ! -x "$program" ]; then
    echo "$version is not installed; installed are: $(ls /opt/leaderboard | tr '\n' ' ')" >&2
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
            echo "$unit is not ready; the processes after it still run the previous version" >&2
            exit 1
        fi
        sleep 1
    done
    echo "$unit is ready"
done
