#!/bin/busybox sh
# Init of the outer guest, which has KVM and runs our VMM: a shell on the console, without echo.
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin
stty -echo
while read -r module; do
    insmod "/lib/$module.ko"
done </modules

echo "outer: ready"
while read -r command; do
    eval "$command"
    echo "outer: status $?"
done
poweroff -f
