# Init of the outer guest, which has KVM and runs the VMM as it is told on its second serial port.
while read -r module; do
    insmod "/lib/$module.ko"
done </modules

obey /dev/ttyS1
poweroff -f
