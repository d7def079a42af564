# Init of the outer guest, which has KVM and runs our VMM: a shell on the console, without echo.
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
