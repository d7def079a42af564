# Init of a guest under test: the helpers of the scenarios, then the scenario that the kernel's command line names.

# The second serial port is the test's own; the kernel prints on the first.
say() {
    echo "said $*" | frame >/dev/ttyS1
}

# Debian's own driver; the arguments are its parameters.
load_driver() {
    insmod /lib/watchdog.ko
    insmod /lib/i6300esb.ko "$@"
}

bootstatus() {
    cat /sys/class/watchdog/watchdog0/bootstatus
}

# Powers the machine off when its power button is pressed, as an installed system does.
obey_power_button() {
    insmod /lib/evdev.ko
    insmod /lib/button.ko
    mkdir -p /etc/acpi/PWRF
    printf '#!/bin/sh\n. /guest.sh\necho said power button | frame >/dev/ttyS1\npoweroff -f\n' >/etc/acpi/PWRF/00000080
    chmod +x /etc/acpi/PWRF/00000080
    acpid -d &
}

. "/scenarios/$scenario"
