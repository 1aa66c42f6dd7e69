#!/bin/sh
# The guest's first process. The kernel's command line says action=…, which arrives as a variable.
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/ TERM="${TERM:-linux}"
case "$action" in
shell)
    echo "A shell in a PV guest. Leave it with \`exit\`, which powers off; Ctrl-A h lists Paravane's keys."
    # A session of its own with the console as its terminal: without one there is no Ctrl-C and no job control.
    setsid cttyhack sh
    poweroff -f
    ;;
check)
    sh /check
    poweroff -f
    ;;
poweroff)
    poweroff -f
    ;;
reboot)
    reboot -f
    ;;
crash)
    echo c > /proc/sysrq-trigger
    ;;
idle)
    echo "idle now"
    while true; do sleep 1000; done
    ;;
*)
    echo "the kernel's command line asks for action=$action, which is none of ours"
    ;;
esac
# The first process must not end, or the kernel panics: whatever got here has failed.
poweroff -f
