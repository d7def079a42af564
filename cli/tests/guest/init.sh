# Init of a guest under test: the helpers of the scenarios, then the scenario that the kernel's command line names.

# The second serial port is the test's own; the kernel prints on the first.
say() {
    echo "said $*" | frame >/dev/ttyS1
}

# Debian's own driver of the i6300esb; the arguments are its parameters.
load_driver() {
    load_watchdog_core
    insmod /lib/i6300esb.ko "$@"
}

# Debian's own driver of the ACPI watchdog table.
load_wdat_driver() {
    load_watchdog_core
    insmod /lib/wdat_wdt.ko
}

# It is a part of some kernels.
load_watchdog_core() {
    if [ -e /lib/watchdog.ko ] && [ ! -e /sys/module/watchdog ]; then insmod /lib/watchdog.ko; fi
}

# Of the watchdog $1, or the first.
bootstatus() {
    cat "/sys/class/watchdog/${1:-watchdog0}/bootstatus"
}

# The driver's name of the watchdog $1.
identity() {
    cat "/sys/class/watchdog/$1/identity"
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
