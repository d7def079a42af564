#!/bin/busybox sh
# Init of a guest under test: the helpers of the scenarios, then the scenario that the kernel's command line names.
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin

say() {
    echo "guest: $*"
}

# Debian's own driver; the arguments are its parameters.
load_driver() {
    insmod /lib/watchdog.ko
    insmod /lib/i6300esb.ko "$@"
}

bootstatus() {
    cat /sys/class/watchdog/watchdog0/bootstatus
}

# Without ACPI, Linux does not know how: it only halts. So this is what ACPI would do, in the two bytes of PM1a control.
power_off() {
    printf '\000' | dd of=/dev/port bs=1 seek=1540 2>/dev/null
    printf '\040' | dd of=/dev/port bs=1 seek=1541 2>/dev/null
    poweroff -f
}

. "/scenarios/$scenario"
