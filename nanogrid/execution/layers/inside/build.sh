# The first process of a build container: makes a layer and sends it to the host as a tar.
#
#   build.sh packages PYTHON [PIP OPTION...]   installs /nanogrid/requirements.txt
#   build.sh tree                              runs the code's own build.sh on a copy of the code
#
# The log goes to one pipe, the tar to another. Exit codes: 0 the tar is complete; 10 the build failed; 11 its result could
# not be packed; 12 there is no pip; any other was not this script's choice.
# It is plain POSIX sh, so that it works in any image that has one. Whatever is built runs as the same user, and could send
# a tar of its own: it would only spoil the layer that it is building.
exec >/nanogrid/log 2>&1 </dev/null 3>/nanogrid/result
# Signals from inside must not end the first process. A trap, unlike ignoring them, is not passed on to the build.
trap : HUP INT QUIT TERM

# The host holds this pipe open. When the builder is gone, so is the build.
(
    exec 3>&-
    cat /nanogrid/hold >/dev/null
    kill -9 -1
) &

fail() {
    echo "nanogrid: $2"
    exit "$1"
}

# The kernel shall choose the build, never this shell, when memory runs out.
expendable() {
    (
        exec 3>&-
        echo 1000 >/proc/self/oom_score_adj
        exec "$@"
    )
}

what=$1
shift
case $what in
packages)
    python=$1
    shift
    result=/workspace/packages
    mkdir -p "$result" "$TMPDIR" || fail 11 "/workspace cannot be written"
    # Isolated (-I): a pip.py among the code must not stand in for pip.
    "$python" -I -c 'import pip' || fail 12 "the image has no pip"
    # From an empty folder: what pip finds beside it under the name of a requirement is a file to it.
    cd /nanogrid/empty || fail 11 "the requirements cannot be read"
    if [ -s /nanogrid/constraints.txt ]; then set -- "$@" -c /nanogrid/constraints.txt; fi
    set -- "$python" -I -m pip install --target "$result" --no-compile --progress-bar off "$@" -r /nanogrid/requirements.txt
    # The index of a build that may run set-up code is served by another container, see index_server.py.
    if [ -p /nanogrid/gateway/ready ]; then set -- "$python" -I /nanogrid/index_client.py "$INDEX_PORT" "$@"; fi
    expendable "$@" || fail 10 "pip ended with exit code $?"
    # Files that cannot be compiled (old syntax in a corner of some package) cannot be imported either: not our business.
    expendable "$python" -I -m compileall -qq -j 2 --invalidation-mode unchecked-hash \
        -s "$result" -p /nanogrid/packages "$result" >/dev/null 2>&1 || :
    ;;
tree)
    result=/workspace
    { cp -R /nanogrid/code/. "$result/" && chmod -R u+w "$result"; } || fail 11 "the code could not be copied"
    cd "$result" || fail 11 "$result cannot be entered"
    shell=/bin/sh
    if command -v bash >/dev/null; then shell=bash; fi
    expendable "$shell" build.sh || fail 10 "build.sh ended with exit code $?"
    ;;
esac

# Nothing may write to the result while it is packed.
kill -9 -1 2>/dev/null
cd "$result" && chmod -R u+rwX . && tar -cf - . >&3 || fail 11 "the result could not be packed"
