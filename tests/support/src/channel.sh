# The guest's end of the channel to the harness; channel.rs describes it.

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
