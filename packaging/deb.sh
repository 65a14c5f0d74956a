#!/bin/bash
# make deb: a Debian package in dist/, for the Debian release whose python3 builds it, with dpkg-deb alone.
#
# Debian's own msgpack is older than the one needed, so the dependencies come along, in /usr/lib/fencebroker.  They are compiled for one
# version of Python; the package says which.
#
#   DEB_PYTHON   Debian's interpreter, /usr/bin/python3
#   RUN          the interpreter of .venv, which builds
#   OUT          where to put it, dist
set -euo pipefail
umask 022
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${DEB_PYTHON:=/usr/bin/python3}" "${OUT:=dist}" "${RUN:=.venv/bin/python}"
export RUN

command -v dpkg-deb >/dev/null || { echo 'make deb: needs dpkg-deb, so Debian or one of its kind' >&2; exit 1; }
"$DEB_PYTHON" -c pass 2>/dev/null || { echo "make deb: there is no $DEB_PYTHON; apt-get install python3, or name another one: DEB_PYTHON=" >&2; exit 1; }
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' fencebroker/__init__.py)
python=$("$DEB_PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
next=$("$DEB_PYTHON" -c 'import sys; print("%d.%d" % (sys.version_info[0], sys.version_info[1] + 1))')

work=$(mktemp -d "${TMPDIR:-/tmp}/fencebroker-deb.XXXXXX")
trap 'rm -rf "$work"' EXIT
tree=$work/tree
DESTDIR=$tree PREFIX=/usr PYTHON=$DEB_PYTHON SYSTEM_SITE=no ZSH_FUNCTIONS=/usr/share/zsh/vendor-completions packaging/install.sh >/dev/null
# dpkg has its own list, and its own way with configuration.
rm "$tree"/usr/lib/fencebroker/{installed,fencebroker.toml.default}
find "$tree/usr/share/man" -type f -exec gzip -9n {} +

doc=$tree/usr/share/doc/fencebroker
install -d "$doc"
gzip -9nc CHANGELOG.md >"$doc/changelog.gz"
{
    printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n'
    printf 'Files: *\nCopyright: the fencebroker authors\nLicense: MIT\n\n'
    printf 'Files: usr/lib/fencebroker/lib/python*\nCopyright: the authors of the packages\nLicense: see-dist-info\n'
    printf ' Each package that comes along has its licence in its folder NAME.dist-info.\n\n'
    printf 'License: MIT\n'
    sed -n '/^Permission/,$ { s/^$/./; s/^/ /; p }' LICENSE
} >"$doc/copyright"

install -d "$tree/DEBIAN"
install -m755 packaging/debian/{postinst,prerm,postrm} "$tree/DEBIAN/"
echo /etc/fencebroker/fencebroker.toml >"$tree/DEBIAN/conffiles"
(cd "$tree" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
sed -e "s/@VERSION@/$version/; s/@ARCHITECTURE@/$(dpkg --print-architecture)/; s/@PYTHON@/$python/; s/@NEXT@/$next/" \
    -e "s/@SIZE@/$(du -sk --exclude=DEBIAN "$tree" | cut -f1)/" packaging/debian/control >"$tree/DEBIAN/control"

mkdir -p "$OUT"
package=$OUT/fencebroker_${version}_$(dpkg --print-architecture).deb
dpkg-deb --root-owner-group -Zxz --build "$tree" "$package" >/dev/null
echo "$package"
