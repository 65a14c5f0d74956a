#!/bin/bash
# make test-systemd: the package, the units and make install under a real systemd, in a fresh Debian each time.
#
#   RUN          the interpreter of .venv
#   CACHE        where the bare Debian is kept between runs, ~/.cache/fencebroker; it is made again when it is not there
#   TESTARGS     for pytest inside
#
# Exit code 77 where it cannot run, with a last line that says why.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
: "${RUN:=.venv/bin/python}" "${CACHE:=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/fencebroker}" "${TESTARGS:=}"
RUN=$(cd "$(dirname "$RUN")" && pwd)/${RUN##*/}
export RUN

cannot() { echo "NOT RUN: the tests under systemd ($*)"; exit 77; }
((EUID == 0)) || cannot 'they need root'
[[ -e /etc/debian_version ]] && command -v apt-get >/dev/null || cannot 'they need Debian'
[[ -x /usr/bin/python3 ]] || cannot 'there is no /usr/bin/python3'
hierarchy=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
[[ -n $hierarchy ]] || cannot 'no cgroup2 is mounted'
mkdir "$hierarchy/fencebroker-probe-$$" 2>/dev/null && rmdir "$hierarchy/fencebroker-probe-$$" || cannot 'cgroups cannot be made here'
unshare --mount true 2>/dev/null || cannot 'mount namespaces cannot be made here'
if ! command -v debootstrap >/dev/null || ! command -v systemd-nspawn >/dev/null; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap systemd-container; } >/dev/null ||
        cannot 'debootstrap and systemd-container cannot be installed'
fi

suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
base=$CACHE/$suite
packages=systemd,systemd-sysv,dbus,python3,libpam-systemd,procps
if [[ $(cat "$base.done" 2>/dev/null) != "$packages" ]]; then
    echo "making a bare Debian $suite in $base (about a minute, 300 MB)"
    rm -rf "$base"
    mkdir -p "$CACHE"
    debootstrap --variant=minbase --include=$packages "$suite" "$base" >"$base.log" 2>&1 ||
        { tail -n 5 "$base.log" >&2; exit 1; }
    # pytest is pure Python: any version's copy serves the one inside.
    "$RUN" -m pip install -qq --disable-pip-version-check --root-user-action=ignore --target "$base/opt/pytest" pytest
    echo "$packages" >"$base.done"
fi

began=$SECONDS
work=$(mktemp -d "${TMPDIR:-/tmp}/fencebroker-systemd.XXXXXX")
trap 'rm -rf "$work"' EXIT
step() { printf '%4d s  %s\n' $((SECONDS - began)) "$1"; }

# The next version: the same tree with another number.
mkdir "$work/next" "$work/test"
tar -c --exclude=./.venv --exclude=./.git --exclude='./.*_cache' --exclude=./dist . | tar -x -C "$work/next"
sed -i 's/^__version__ = .*/__version__ = "99.0.0"/' "$work/next/fencebroker/__init__.py"
OUT=$work/test/this packaging/deb.sh >/dev/null
OUT=$work/test/next "$work/next/packaging/deb.sh" >/dev/null
step 'two packages'
cp -a "$base" "$work/root"
# Into a Debian as it is, so that the list has what was not there before; what it names is unpacked when it is its turn.
cp -a "$work/root" "$work/tree"
DESTDIR=$work/tree PREFIX=/usr/local PYTHON=/usr/bin/python3 packaging/install.sh >/dev/null
tar -C "$work/tree" -cf "$work/test/installed.tar" --no-recursion -T <(sed 's|^/||' "$work/tree/usr/local/lib/fencebroker/installed")
rm -rf "$work/tree"
step 'make install'

# A machine that is thrown away need not be safe against a loss of power.
echo force-unsafe-io >"$work/root/etc/dpkg/dpkg.cfg.d/unsafe-io"
install -D -t "$work/test/tests" tests/__init__.py
install -D -t "$work/test/tests/systemd" tests/systemd/__init__.py
cp -a tests/systemd/inside "$work/test/tests/systemd/"
cp -a packaging/uninstall.sh "$work/test/"
install -d "$work/root/opt"
mv "$work/test" "$work/root/opt/test"
cat >"$work/root/opt/test/run" <<END
#!/bin/bash
export PYTHONPATH=/opt/pytest:/opt/test PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8
cd /opt/test/tests/systemd/inside
exec /usr/bin/python3 -m pytest -c pytest.ini -p no:cacheprovider --color=no -ra --durations=5 $TESTARGS
END
chmod +x "$work/root/opt/test/run"
code=0
tests/systemd/boot.sh "$work/root" /opt/test/run || code=$?
step 'the tests inside'
exit "$code"
