# Init of a guest with Debian's own drivers, a network, an HTTP server and QEMU's guest agent. The kernel's command line
# says how many liveness probes the application answers before it crashes: crash_after.

# The server answers requests for /cgi-bin/$1 with the other arguments in turn, and with the last one from then on.
answer() {
    name=$1
    shift
    # The kernel renames atomically: a request sees the old statuses or the new ones.
    printf '%s\n' "$@" >"/answers/$name.new" && mv "/answers/$name.new" "/answers/$name"
}

# Starts the guest agent on its port, which the kernel may name some time after the driver is loaded.
start_agent() {
    until name=$(grep -lx org.qemu.guest_agent.0 /sys/class/virtio-ports/*/name 2>/dev/null); do sleep 0.1; done
    port=${name%/name}
    qemu-ga --method virtio-serial --path "/dev/${port##*/}" --statedir /run --pidfile /run/qemu-ga.pid \
        >/dev/null 2>&1 &
    agent=$!
    until ls -l "/proc/$agent/fd" 2>/dev/null | grep -q "/dev/${port##*/}"; do sleep 0.1; done
}

# Kills the guest agent, and returns when it has ended.
kill_agent() {
    kill -KILL "$agent" || return
    wait "$agent" 2>/dev/null # Hides the "Killed" message of the shell.
    [ $? = 137 ]
}

while read -r module; do
    insmod "/lib/$module.ko"
done </modules

mkdir /answers /run /tmp
if [ -n "$crash_after" ]; then
    answer liveness $(yes 200 | head -n "$crash_after") 500
else
    answer liveness 200
fi
answer readiness 200
httpd -p 8080 -h /www
# Last, so that a request during the boot waits for an answer instead of being refused.
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0

obey /dev/ttyS1 "$(cat /sys/class/watchdog/watchdog0/bootstatus 2>/dev/null)"
