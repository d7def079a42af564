# What the guests of all tests share. First: their end of the channel, which channel.rs describes.

# Frames standard input as one message.
frame() {
    message=$(base64 | tr -d '\n')
    printf '{vmwd %s %s}\n' "${#message}" "$message"
}

# Does what the harness asks for on a device: announces the boot with the other arguments, then executes one command
# after the other.
obey() {
    exec 3<>"$1"
    shift
    # A serial port is a terminal, other devices are not.
    if [ -t 3 ]; then stty raw -echo <&3; fi
    echo "ready $*" | frame >&3
    while read -r number command <&3; do
        eval "$command" </dev/null >/output 2>&1 3>&-
        { echo "done $number $?"; cat /output; } | frame >&3
    done
}

# Has busybox feed the watchdog every $1 seconds, with a timeout of $2 seconds. Returns when the timeout is set.
feed() {
    watchdog -F -t "$1" -T "$2" /dev/watchdog &
    feeder=$!
    until ls -l "/proc/$feeder/fd" 2>/dev/null | grep -q /dev/watchdog; do sleep 0.1; done
    until [ "$(cat /sys/class/watchdog/watchdog0/timeout)" = "$2" ]; do sleep 0.1; done
}

# Ends it with the signal $1, and returns when it has closed the watchdog. KILL leaves the watchdog running, and Linux
# gives it a last heartbeat; TERM stops it.
end_feeder() {
    kill -s "$1" "$feeder" || return
    wait "$feeder" 2>/dev/null # Without "Killed" from the shell.
    case "$1 $?" in "KILL 137" | "TERM 0") ;; *) return 1 ;; esac
}
