# Init of a guest that has Debian's own driver loaded, and does what the test asks for on its only serial port.
insmod /lib/watchdog.ko
insmod /lib/i6300esb.ko

# Powers the machine off when its power button is pressed, as an installed system does.
insmod /lib/evdev.ko
insmod /lib/button.ko
mkdir -p /etc/acpi/PWRF
printf '#!/bin/sh\n. /guest.sh\necho said power button | frame >/dev/ttyS0\npoweroff -f\n' >/etc/acpi/PWRF/00000080
chmod +x /etc/acpi/PWRF/00000080
acpid -d >/dev/null 2>&1 &

# BAR0 in the watchdog's configuration space.
function_of_watchdog() {
    dirname "$(grep -l 0x25ab /sys/bus/pci/devices/*/device)"
}
bar0() {
    hexdump -s 16 -n 4 -e '"%08x"' "$(function_of_watchdog)/config"
}
move_bar0() {
    bytes=$(printf '\\%03o\\%03o\\%03o\\%03o' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24 & 255)))
    printf "$bytes" | dd of="$(function_of_watchdog)/config" bs=4 seek=4 conv=notrunc 2>/dev/null
}

# Has the kernel read the watchdog's configuration space anew.
find_watchdog_again() {
    echo 1 >"$(function_of_watchdog)/remove"
    echo 1 >/sys/bus/pci/rescan
}

obey /dev/ttyS0 "$(cat /sys/class/watchdog/watchdog0/bootstatus)"
