# The first process of a container whose image has no Python: waits for a function, copies its code, runs it, kills everything that is
# left, reports, and stays. The container is removed after one run.
#
# It waits in its first line: a pipe opens when somebody reads it, and the host does that when code and command are in place.
# It stays so that the container's cgroup stays: the host reads memory peak, CPU time and OOM kills after the function has ended and
# before it removes the container. It reports to the host through one pipe, in one line per event, with the kernel's uptime in seconds
# if the time matters (the host may be too busy to read a line immediately):
#   started UPTIME   the command is about to run        exited N UPTIME  it ended with this code
#   unready WORDS    the code could not be copied
# It is plain POSIX sh, so that it works in any image with a shell. The function runs as the same user and could write the same lines:
# that would only end its own run early. All measurements are made outside.
exec </dev/null >/dev/null 2>&1
# Signals from inside must not end the first process. Unlike an ignored signal, a trap is not inherited by the function.
trap : HUP INT QUIT TERM
exec 3>/nanogrid/control

stay() {
    while :; do read -r _ </nanogrid/hold; done
}

if ! problem=$(cp -R /nanogrid/code/. /workspace/ 2>&1 && chmod -R u+w /workspace 2>&1); then
    echo "unready $(echo "$problem" | head -n 1)" >&3
    stay
fi

read -r uptime _ </proc/uptime
echo "started $uptime" >&3
(
    exec 3>&- </nanogrid/run/payload.json >/nanogrid/stdout 2>/nanogrid/stderr
    # When memory runs out, the kernel must kill the function, never this shell.
    echo 1000 >/proc/self/oom_score_adj
    . /nanogrid/start.sh
)
code=$?
read -r uptime _ </proc/uptime
kill -9 -1
echo "exited $code $uptime" >&3
stay
