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
packages=systemd,systemd-sysv,dbus,python3,libpam-systemd
tools=(pytest pip hatchling markdown-it-py)
if [[ $(cat "$base.done" 2>/dev/null) != "$packages ${tools[*]}" ]]; then
    echo "making a bare Debian $suite in $base (about a minute, 300 MB)"
    rm -rf "$base"
    mkdir -p "$CACHE"
    debootstrap --variant=minbase --include=$packages "$suite" "$base" >"$base.log" 2>&1 ||
        { tail -n 5 "$base.log" >&2; exit 1; }
    # What the tests inside run in, and what make install builds with there.
    /usr/bin/python3 -m venv --without-pip --symlinks "$base/opt/venv"
    "$RUN" -m pip --python "$base/opt/venv/bin/python3" install -qq --disable-pip-version-check --root-user-action=ignore "${tools[@]}"
    echo "$packages ${tools[*]}" >"$base.done"
fi

began=$SECONDS
work=$(mktemp -d "${TMPDIR:-/tmp}/fencebroker-systemd.XXXXXX")
trap 'rm -rf "$work"' EXIT
step() { printf '%4d s  %s\n' $((SECONDS - began)) "$1"; }

# Everything that is fetched is fetched once; the machine inside has no network.
mkdir "$work/test" "$work/test/wheels"
"$RUN" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' >"$work/needs"
"$RUN" -m pip --python /usr/bin/python3 wheel -qq --disable-pip-version-check --wheel-dir "$work/test/wheels" -r "$work/needs"
export PIP_NO_INDEX=1 PIP_FIND_LINKS=$work/test/wheels

mkdir "$work/test/tree" "$work/next"
tar -c --exclude=./.venv --exclude=./.git --exclude='./.*_cache' --exclude=./.hypothesis --exclude=./dist . | tar -x -C "$work/test/tree"
# The next version: the same tree with another number.
cp -a "$work/test/tree/." "$work/next"
sed -i 's/^__version__ = .*/__version__ = "99.0.0"/' "$work/next/fencebroker/__init__.py"
OUT=$work/test/this packaging/deb.sh >/dev/null
OUT=$work/test/next "$work/next/packaging/deb.sh" >/dev/null
step 'two packages'

cp -a "$base" "$work/root"
"$RUN" -m pip --python "$work/root/opt/venv/bin/python3" install -qq --disable-pip-version-check --root-user-action=ignore -r "$work/needs"
# A machine that is thrown away need not be safe against a loss of power.
echo force-unsafe-io >"$work/root/etc/dpkg/dpkg.cfg.d/unsafe-io"
mv "$work/test" "$work/root/opt/test"
cat >"$work/root/opt/test/run" <<END
#!/bin/bash
export PYTHONPATH=/opt/test/tree PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8
cd /opt/test/tree/tests/systemd/inside
exec /opt/venv/bin/python3 -m pytest -c pytest.ini --confcutdir=. -p no:cacheprovider --color=no -ra --durations=5 $TESTARGS
END
chmod +x "$work/root/opt/test/run"
code=0
tests/systemd/boot.sh "$work/root" /opt/test/run || code=$?
step 'the tests inside'
exit "$code"
