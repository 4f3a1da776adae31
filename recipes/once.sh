# Read by the scripts that run many commands:  . recipes/once.sh
# once STAMP COMMAND...: runs the command, unless the file STAMP says that it has finished before.
once() {
    stamp=$1
    shift
    if [ -f "$stamp" ]; then return; fi
    echo "$(basename "$0"): ${stamp%.done}" >&2
    "$@"
    : >"$stamp"
}
