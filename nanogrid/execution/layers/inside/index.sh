# The first process of a container that serves the package index to a build. It has the index's credentials, and runs only pip
# and NanoGrid's program.
#
#   index.sh PYTHON
#
# It ends when it is killed, or when the host closes the pipe that it holds open. Exit codes as in build.sh.
exec >/nanogrid/log 2>&1 </dev/null
trap : HUP INT QUIT TERM
(
    cat /nanogrid/hold >/dev/null
    kill -9 -1
) &
"$1" -I -c 'import pip' || {
    echo "nanogrid: the image has no pip"
    exit 12
}
"$1" -I /nanogrid/index_server.py
echo "nanogrid: what serves the package index ended with exit code $?"
exit 10
