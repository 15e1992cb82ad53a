#!/usr/bin/env bash
# Commands that launch/tpu_pod.py runs on the workers of a pod, as part of the installed package.
#
#   install              install a Python for the package, and its dependencies
#   start MODULE FLAGS   stop a running experiment; start one that does not need the connection
#   follow               show its log until it ends, and exit with its status
#   stop                 send SIGTERM: the run saves a checkpoint and ends
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
environment=${PRELU_JAX_ENVIRONMENT:-$HOME/prelu_jax_environment}
state=${PRELU_JAX_STATE:-/tmp/prelu_jax} # lost at a restart of the machine, as intended

install() {
    # The images' own Python is too old.
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --allow-existing --python=3.12 "$environment"
    python3 -m uv pip install --quiet --python="$environment/bin/python" "${root}[tpu,data]"
}

running() {
    [ -e "$state/pid" ] && [ ! -e "$state/status" ] && kill -0 "$(cat "$state/pid")" 2>/dev/null
}

start() {
    stop
    mkdir -p "$state"
    rm -f "$state/status"
    cd "$root"
    setsid bash -c '"$@"; echo $? > "$0.new"; mv "$0.new" "$0"' \
        "$state/status" "$environment/bin/python" -m "$@" >"$state/log" 2>&1 </dev/null &
    echo $! >"$state/pid"
}

follow() {
    [ -e "$state/pid" ] || exit 66 # nothing was started here
    tail --bytes=10000 --follow "$state/log" &
    trap "kill $! 2>/dev/null || true" EXIT
    while running; do sleep 1; done
    sleep 1 # for the last lines
    status=$(cat "$state/status" 2>/dev/null || echo 70) # none: it was killed with its parent
    [ "$status" != 1 ] || status=101                     # 1 and 255 are gcloud's own
    exit "$status"
}

stop() {
    for second in $(seq 60); do
        running || return 0
        pid=$(cat "$state/pid")
        [ "$second" != 1 ] || kill -TERM $(cat "/proc/$pid/task/$pid/children")
        sleep 1
    done
    kill -KILL -- "-$pid"
}

"$@"
