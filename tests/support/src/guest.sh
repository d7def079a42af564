# Shell functions for the guests of all tests. channel.rs describes the protocol.

# Sends standard input as one message.
frame() {
    message=$(base64 | tr -d '\n')
    printf '{vmwd %s %s}\n' "${#message}" "$message"
}

# Serves the harness on the device $1, which may be a pattern: announces the boot with the other arguments, then executes
# commands in turn. What a command sets $afterwards to is executed after its reply, which a reset cannot prevent then.
obey() {
    pattern=$1
    shift
    # The kernel may add a virtio port some time after its driver is loaded. Opened before that, it would be a new file.
    until device=$(echo $pattern) && [ -c "$device" ]; do sleep 0.1; done
    exec 3<>"$device"
    # Only a serial port is a terminal.
    if [ -t 3 ]; then stty raw -echo <&3; fi
    echo "ready $*" | frame >&3
    afterwards=
    while :; do
        # A virtio port is at its end as long as the host has not opened it.
        if ! read -r mark number command <&3; then
            sleep 0.1
            continue
        fi
        # A guest that hardly runs may lose the beginning of a line.
        if [ "$mark" != run ]; then
            echo "again" | frame >&3
            continue
        fi
        eval "$command" </dev/null >/output 2>&1 3>&-
        { echo "done $number $?"; cat /output; } | frame >&3
        eval "$afterwards" </dev/null 3>&-
        afterwards=
    done
}

# Starts busybox' watchdog daemon: a heartbeat every $1 seconds, a timeout of $2 seconds, for the watchdog $3 or the
# first. Returns when the timeout is set.
feed() {
    watchdog -F -t "$1" -T "$2" "/dev/${3:-watchdog}" &
    feeder=$!
    until ls -l "/proc/$feeder/fd" 2>/dev/null | grep -q /dev/watchdog; do sleep 0.1; done
    until [ "$(cat "/sys/class/watchdog/${3:-watchdog0}/timeout")" = "$2" ]; do sleep 0.1; done
}

# Ends the daemon with the signal $1, and returns when it has closed the watchdog. After KILL the watchdog keeps
# running, and Linux sends a last heartbeat; after TERM it is stopped.
end_feeder() {
    kill -s "$1" "$feeder" || return
    wait "$feeder" 2>/dev/null # Hides the "Killed" message of the shell.
    case "$1 $?" in "KILL 137" | "TERM 0") ;; *) return 1 ;; esac
}
