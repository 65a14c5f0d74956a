#!/bin/bash
# Boots a real systemd as PID 1 in systemd-nspawn, runs one script in it as a unit, and powers off.
#
#   boot.sh ROOT SCRIPT
#
# ROOT is a folder with a Debian; SCRIPT a path in it.  The script's output and exit code are this one's.  Needs root and a cgroup2
# mount; no systemd on the host.  There is no memory or pids controller in there: MemoryMax= and TasksMax= have no effect.
set -euo pipefail
root=$1 script=$2
limit=${LIMIT:-420}

cat >"$root/etc/systemd/system/test-run.service" <<U
[Unit]
Description=The tests
After=multi-user.target
[Service]
Type=exec
WorkingDirectory=/opt/test
ExecStart=/bin/bash -c '$script >/opt/test/.out 2>&1; echo \$? >/opt/test/.code'
ExecStopPost=/bin/systemctl --no-block --force poweroff
TimeoutStopSec=5
U
install -d "$root/etc/systemd/system/multi-user.target.wants"
ln -sf ../test-run.service "$root/etc/systemd/system/multi-user.target.wants/test-run.service"
ln -sf /dev/null "$root/etc/systemd/system/console-getty.service"
rm -f "$root"/opt/test/.out "$root"/opt/test/.code

hierarchy=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
group=$hierarchy/fencebroker-test-$$
mkdir "$group"
trap 'find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true' EXIT
boot=(systemd-nspawn --quiet --register=no --keep-unit --machine="fencebroker-test-$$" --private-network -D "$root" --console=read-only --boot)
# The cgroup is entered before the mount, and no cgroup namespace is made: nspawn could not find PID 1's cgroup in one.
timeout "$limit" bash -c '
    echo $$ >"$0/cgroup.procs"
    exec unshare --mount --propagation private bash -c "
        umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec env SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 \"\$@\"
    " -- "$@"
' "$group" "${boot[@]}" >"$root/opt/test/.boot" 2>&1 </dev/null || true
[[ ! -e $root/opt/test/.out ]] || cat "$root/opt/test/.out"
if [[ ! -e $root/opt/test/.code ]]; then
    echo "boot.sh: the script did not end within $limit s; the last lines of the boot:" >&2
    tail -n 20 "$root/opt/test/.boot" >&2
    exit 1
fi
exit "$(cat "$root/opt/test/.code")"
