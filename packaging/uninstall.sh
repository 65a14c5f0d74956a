#!/bin/bash
# make uninstall: remove what make install put below $DESTDIR and $PREFIX, by its list, and the folders it had to make.
#
# A configuration that was changed stays.
set -euo pipefail
: "${PREFIX:=/usr/local}" "${DESTDIR:=}"
DESTDIR=${DESTDIR%/} PREFIX=${PREFIX%/}
lib=$PREFIX/lib/fencebroker
list=$DESTDIR$lib/installed
if [[ ! -f $list ]]; then
    echo "make uninstall: nothing is installed in $DESTDIR$PREFIX ($list is not there)"
    exit 0
fi

live=no
[[ -n $DESTDIR || $EUID != 0 || ! -d /run/systemd/system ]] || live=yes
if [[ $live == yes ]]; then
    systemctl disable --quiet --now fencebroker.socket fencebroker.service
fi

config=/etc/fencebroker/fencebroker.toml
mapfile -t files < <(grep -v '/$' "$list")
mapfile -t folders < <(grep '/$' "$list" | LC_ALL=C sort -r)
if [[ -e $DESTDIR$config ]] && ! cmp -s "$DESTDIR$config" "$DESTDIR$lib/fencebroker.toml.default"; then
    echo "make uninstall: $config was changed and stays"
    files=("${files[@]/#$config/}")
fi
for file in "${files[@]}"; do
    [[ -z $file ]] || rm -f "$DESTDIR$file"
done
for folder in "${folders[@]}"; do
    rmdir --ignore-fail-on-non-empty "$DESTDIR$folder" 2>/dev/null || :
done

if [[ $live == yes ]]; then
    systemctl daemon-reload
    systemctl reset-failed fencebroker.socket fencebroker.service 2>/dev/null || :
    # No file outside of /run belongs to it, so its number can be used again.
    # userdel leaves a group that has members.
    if getent passwd fencebroker >/dev/null; then userdel fencebroker >/dev/null 2>&1 || :; fi
    if getent group fencebroker >/dev/null; then groupdel fencebroker; fi
    rmdir /run/fencebroker 2>/dev/null || :
fi
echo "removed from $DESTDIR$PREFIX"
