#!/bin/sh
# Looks at the guest from inside. Each fact is a line "check: pass NAME" or "check: FAIL NAME: what was found", and the
# last line says how many there were of each.
passed=0
failed=0

# The kernel's messages would stand in the middle of our lines where it prints from a thread of its own (PREEMPT_RT). They
# are read from its log at the end; what it prints when it dies is shown all the same.
dmesg -n 1

# result NAME EXPECTED FOUND
result() {
    if [ "$2" = "$3" ]; then
        passed=$((passed + 1))
        echo "check: pass $1"
    else
        failed=$((failed + 1))
        echo "check: FAIL $1: expected $2, found $3"
    fi
}

# Hundredths of seconds since the guest started.
uptime_cs() {
    read -r up idle < /proc/uptime
    echo "$up" | sed 's/\.//; s/^0*\(.\)/\1/'
}

echo "check: this is $(uname -a)"
result hypervisor-is-xen xen "$(cat /sys/hypervisor/type 2>&1)"
result guest-is-pv PV "$(cat /sys/hypervisor/guest_type 2>&1)"
result one-processor 1 "$(grep -c '^processor' /proc/cpuinfo)"
result processor-is-64-bit 1 "$(grep -c '^flags.* lm ' /proc/cpuinfo)"
result processor-without-vmx-and-svm 0 "$(grep -c -E '^flags.* (vmx|svm) ' /proc/cpuinfo)"
result processor-has-a-frequency 1 "$(grep -c -E '^cpu MHz.*: [1-9][0-9]{2,4}\.' /proc/cpuinfo)"

# Processes: each is a fork of the shell and an exec of another program.
count=0
while [ "$count" -lt 50 ] && /bin/busybox true; do count=$((count + 1)); done
result fork-and-exec-50-times 50 "$count"
(exit 23)
result status-of-a-child 23 "$?"
result pipes 500500 "$(seq 1000 | awk '{ sum += $1 } END { print sum }')"
result bytes-through-a-pipe b6d81b360a5672d80c27430f39153e2c \
    "$(dd if=/dev/zero bs=64k count=16 2>/dev/null | md5sum | cut -d' ' -f1)"
dd if=/dev/urandom of=/tmp/data bs=1024 count=4096 2>/dev/null
gzip -c /tmp/data | gzip -dc > /tmp/copy
result compressed-data-comes-back "$(sha256sum < /tmp/data)" "$(sha256sum < /tmp/copy)"
result floating-point 0.66667 "$(awk 'BEGIN { printf "%.5f", 2 / 3 }')"

# Signals between processes.
trap 'caught=yes' USR1
caught=no
kill -USR1 $$
result signal-to-oneself yes "$caught"
sleep 1000 &
kill -TERM $!
wait $! 2>/dev/null
result signal-to-a-child 143 "$?"

# Faults. A shell between, so that its message about the killed program goes nowhere.
while read -r name status; do
    sh -c '/probe/"$0"; exit $?' "$name" > /dev/null 2>&1
    result "$name" "$status" "$?"
done < /probe/expected

# Time, by the guest's own clock. A guest that is kept from running sleeps longer, and never shorter.
start=$(uptime_cs)
sleep 1
end=$(uptime_cs)
slept=$((end - start))
result sleep-1-takes-at-least-a-second yes "$([ "$slept" -ge 99 ] && echo yes || echo "$slept cs")"
result sleep-1-takes-no-5-seconds yes "$([ "$slept" -lt 500 ] && echo yes || echo "$slept cs")"
echo "check: slept for $slept hundredths of a second"
echo "check: memory $(grep MemTotal /proc/meminfo)"
echo "check: date $(date +%s)"

# The balloon: the kernel gives a part of its memory back, and takes as much again.
balloon=/sys/devices/system/xen_memory/xen_memory0
# balloon_to KIB: sets the target, waits until it is reached, and says where the balloon is.
balloon_to() {
    echo "$1" > $balloon/target_kb
    tries=0
    while [ "$(cat $balloon/info/current_kb)" != "$1" ] && [ "$tries" -lt 300 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
    cat $balloon/info/current_kb
}
full=$(cat $balloon/info/current_kb 2>&1)
less=$((full - 32768))
before=$(sha256sum < /tmp/data)
result balloon-gives-memory-back "$less" "$(balloon_to "$less")"
result balloon-takes-it-again "$full" "$(balloon_to "$full")"
result data-outlives-the-balloon "$before" "$(sha256sum < /tmp/data)"

# Whatever the kernel complained of until here.
complaints=$(dmesg | grep -E 'WARNING|BUG|Oops|Call Trace|cut here|panic -|soft lockup|rcu.*stall|unchecked MSR|\(XEN\)')
result kernel-log-has-no-complaints "" "$complaints"

echo "check: done, $passed passed, $failed failed"
