#!/bin/bash
# make install: everything that belongs on a machine, below $DESTDIR, and a list of it for make uninstall.
#
#   PREFIX       /usr/local, or where the programs go otherwise; systemd looks for units below /usr and /usr/local only
#   DESTDIR      a folder that stands for /, for building packages; then nothing of this machine is touched
#   PYTHON       the interpreter that runs the programs
#   SYSTEM_SITE  yes: use the packages of that interpreter where they are new enough; no: have all of them in the environment
#   RUN          the interpreter of .venv, which builds
#
# All is made in a temporary folder first; what the list names is what is copied.
set -euo pipefail
umask 022
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${PREFIX:=/usr/local}" "${DESTDIR:=}" "${PYTHON:=python3}" "${SYSTEM_SITE:=no}" "${RUN:=.venv/bin/python}" "${ZSH_FUNCTIONS:=$PREFIX/share/zsh/site-functions}"
RUN=$(cd "$(dirname "$RUN")" && pwd)/${RUN##*/}

die() { echo "make install: $*" >&2; exit 1; }
[[ $PREFIX == /* && $PREFIX != / && $PREFIX != *[[:space:]]* ]] || die "PREFIX must be an absolute path without blanks, not '$PREFIX'"
[[ -z $DESTDIR || $DESTDIR == /* ]] || die "DESTDIR must be an absolute path, not '$DESTDIR'"
[[ $SYSTEM_SITE == yes || $SYSTEM_SITE == no ]] || die "SYSTEM_SITE must be yes or no, not '$SYSTEM_SITE'"
DESTDIR=${DESTDIR%/} PREFIX=${PREFIX%/}
lib=$PREFIX/lib/fencebroker
# Kernels before 5.1 cut the first line of a script at 127 bytes.
((${#lib} <= 100)) || die "PREFIX is too long: the first line of a script may have 127 bytes"

work=$(mktemp -d "${TMPDIR:-/tmp}/fencebroker-install.XXXXXX")
trap 'rm -rf "$work"' EXIT
stage=$work/stage
mkdir "$stage"
export PYTHONPATH=$PWD:$PWD/daemon PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore

# -- the environment

options=(--without-pip --symlinks)
[[ $SYSTEM_SITE == no ]] || options+=(--system-site-packages)
env -u PYTHONPATH "$PYTHON" -m venv "${options[@]}" "$stage$lib"
env -u PYTHONPATH "$RUN" -m pip wheel -qq --no-deps --no-build-isolation --wheel-dir "$work/wheel" .
env -u PYTHONPATH "$RUN" -m pip --python "$stage$lib/bin/python3" install -qq --no-compile --no-warn-script-location "$work"/wheel/*.whl
interpreter=$(readlink -f "$stage$lib/bin/python3")
case $interpreter in
    /home/* | /root/* | /run/user/*)
        echo "make install: the system's unit cannot run $interpreter, it sees no home folders (ProtectHome=); use PYTHON=/usr/bin/python3" >&2 ;;
esac
# What names the folder it was made in: scripts that nobody needs, and notes of the tools.
find "$stage$lib/bin" -type f -delete
rm -rf "$stage$lib/include"
find "$stage$lib" -name direct_url.json -delete
sed -i '/direct_url\.json/d; /^\.\.\/\.\.\/\.\.\/bin\//d' "$stage$lib"/lib/python*/site-packages/*.dist-info/RECORD
sed -i '/^\(home\|include-system-site-packages\|version\) = /!d' "$stage$lib/pyvenv.cfg"
install -d "$stage$PREFIX/bin"
while read -r name module; do
    # -I: nothing of the caller's environment or home puts modules in front of these.
    printf '#!%s/bin/python3 -I\nimport sys\n\nfrom %s import main\n\nsys.exit(main())\n' "$lib" "$module" >"$stage$lib/bin/$name"
    chmod 755 "$stage$lib/bin/$name"
    ln -s "../lib/fencebroker/bin/$name" "$stage$PREFIX/bin/$name"
done <<'END'
fencebrokerd fencebrokerd.keeper
fencectl fencebroker.cli.main
END
# Compiled now, so that no file comes later which no list names.
env -u PYTHONPATH -u PYTHONDONTWRITEBYTECODE "$stage$lib/bin/python3" -I -m compileall -q -s "$stage" -p / "$stage$lib/lib"

# -- units, configuration, manual, completions

for unit in systemd/fencebroker.{socket,service} systemd/user/fencebroker.{socket,service}; do
    folder=system
    [[ $unit != systemd/user/* ]] || folder=user
    install -d "$stage$PREFIX/lib/systemd/$folder"
    sed "s|^ExecStart=/usr/bin/|ExecStart=$PREFIX/bin/|" "$unit" >"$stage$PREFIX/lib/systemd/$folder/${unit##*/}"
done
install -Dm644 systemd/fencebroker.sysusers "$stage$PREFIX/lib/sysusers.d/fencebroker.conf"
install -Dm644 systemd/fencebroker.tmpfiles "$stage$PREFIX/lib/tmpfiles.d/fencebroker.conf"
install -Dm644 docs/fencebroker.toml "$stage/etc/fencebroker/fencebroker.toml"
"$RUN" -m docs --man "$stage$PREFIX/share/man"
install -d "$stage$PREFIX/share/bash-completion/completions" "$stage$ZSH_FUNCTIONS" "$stage$PREFIX/share/fish/vendor_completions.d"
while read -r shell file; do
    "$RUN" -c '
import sys
from click.shell_completion import get_completion_class
from fencebroker.cli.main import cli
print(get_completion_class(sys.argv[1])(cli, {}, "fencectl", "_FENCECTL_COMPLETE").source())
' "$shell" >"$stage$file"
done <<END
bash $PREFIX/share/bash-completion/completions/fencectl
zsh $ZSH_FUNCTIONS/_fencectl
fish $PREFIX/share/fish/vendor_completions.d/fencectl.fish
END
find "$stage" -type d -exec chmod 755 {} +

# -- what is there already

list=$DESTDIR$lib/installed
old=$work/old
cat "$list" >"$old" 2>/dev/null || :
config=/etc/fencebroker/fencebroker.toml
install -m644 "$stage$config" "$stage$lib/fencebroker.toml.default"
if [[ -e $DESTDIR$config ]] && ! cmp -s "$DESTDIR$config" "$stage$config" && ! cmp -s "$DESTDIR$config" "$DESTDIR$lib/fencebroker.toml.default"; then
    echo "make install: $config was changed and stays as it is; the new one is $lib/fencebroker.toml.default"
    rm "$stage$config"
fi

# The list: files, and folders that did not exist, each once, a folder with a slash at the end.
{
    (cd "$stage" && find . ! -type d -printf '/%P\n')
    echo "$lib/installed"
    [[ -e $stage$config ]] || echo "$config"
    (cd "$stage" && find . -mindepth 1 -type d -printf '/%P\n') | while read -r folder; do
        if [[ ! -d $DESTDIR$folder ]] || grep -qxF "$folder/" "$old"; then echo "$folder/"; fi
    done
} | LC_ALL=C sort >"$work/new"
cp "$work/new" "$stage$lib/installed"

# -- copy

mkdir -p "$DESTDIR/"
tar -C "$stage" -cf - . | tar -C "$DESTDIR/" -xf - --no-same-owner --no-overwrite-dir --keep-directory-symlink
# An earlier version may have had more.
LC_ALL=C comm -23 "$old" "$work/new" | grep -v '/$' | while read -r file; do rm -f "$DESTDIR$file"; done || :

if [[ -z $DESTDIR && $EUID == 0 && -d /run/systemd/system ]]; then
    systemd-sysusers "$PREFIX/lib/sysusers.d/fencebroker.conf"
    systemd-tmpfiles --create "$PREFIX/lib/tmpfiles.d/fencebroker.conf"
    systemctl daemon-reload
    systemctl try-restart fencebroker.service
    echo "installed in $PREFIX; start it with: systemctl enable --now fencebroker.socket"
else
    echo "installed in $DESTDIR$PREFIX"
fi
