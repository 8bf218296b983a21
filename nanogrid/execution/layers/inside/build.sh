# The first process of a build container: builds a layer and sends it to the host as a tar.
#
#   build.sh packages PYTHON [PIP OPTION...]   installs /nanogrid/requirements.txt
#   build.sh tree                              runs the code's own build.sh on a copy of the code
#
# The log goes to one pipe, the tar to another. Exit codes: 0 the tar is complete; 10 the build failed; 11 its result could
# not be packed; 12 there is no pip; this script chooses no other.
# It is plain POSIX sh, so that it works in any image that has a shell. The build runs as the same user and could send its own
# tar: it would only spoil its own layer.
exec >/nanogrid/log 2>&1 </dev/null 3>/nanogrid/result
# Signals from inside must not end the first process. A trap, unlike an ignored signal, is not inherited by the build.
trap : HUP INT QUIT TERM

# The host holds this pipe open. When the builder dies, the build is killed.
(
    exec 3>&-
    cat /nanogrid/hold >/dev/null
    kill -9 -1
) &

fail() {
    echo "nanogrid: $2"
    exit "$1"
}

# When memory runs out, the kernel must kill the build, never this shell.
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
    # Isolated (-I): a pip.py in the code must not replace pip.
    "$python" -I -c 'import pip' || fail 12 "the image has no pip"
    # From an empty folder: pip would install a file of the current folder that is named like a requirement.
    cd /nanogrid/empty || fail 11 "the requirements cannot be read"
    if [ -s /nanogrid/constraints.txt ]; then set -- "$@" -c /nanogrid/constraints.txt; fi
    set -- "$python" -I -m pip install --target "$result" --no-compile --progress-bar off "$@" -r /nanogrid/requirements.txt
    # If the build may run set-up code, another container serves the index, see index_server.py.
    if [ -p /nanogrid/gateway/ready ]; then set -- "$python" -I /nanogrid/index_client.py "$INDEX_PORT" "$@"; fi
    expendable "$@" || fail 10 "pip ended with exit code $?"
    # Files that cannot be compiled (such as old syntax in some package) cannot be imported either: ignore them.
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
