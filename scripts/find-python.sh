#!/usr/bin/env bash
# find-python.sh [X.Y] - print the path of the CPython to use: $PYTHON if that is set, else the first
# released one with venv and pip that is new enough (or just X.Y) on PATH, in uv's folder or in pyenv's.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { echo "kloop: $*" >&2; exit 1; }

min=$(sed -n 's/^requires-python = ">=\(.*\)"$/\1/p' pyproject.toml)

# look INTERPRETER - say what it is: "ok PATH", "odd PATH" (a pre-release or a free-threaded build,
# taken only where $PYTHON names it), "no-venv PATH", "unfit VERSION" or, if it does not run, nothing
look() {
    "$1" - "$min" "${want-}" 2>/dev/null <<'PY' || true
import sys
import sysconfig

minimum, want = sys.argv[1], sys.argv[2]
here = sys.version_info[:2]
fits = here == tuple(map(int, want.split("."))) if want else here >= tuple(map(int, minimum.split(".")))
odd = sys.version_info.releaselevel != "final" or sysconfig.get_config_var("Py_GIL_DISABLED")
if sys.implementation.name != "cpython" or not fits:
    print("unfit", sys.implementation.name, ".".join(map(str, sys.version_info[:3])))
else:
    try:
        import ensurepip
        import venv  # noqa: F401

        ensurepip.version()
    except Exception:
        print("no-venv", sys.executable)
    else:
        print("odd" if odd else "ok", sys.executable)
PY
}

no_venv() {
    die "$1 has no venv or ensurepip: install them (on Debian and Ubuntu: python$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv)"
}

if [ -n "${PYTHON-}" ]; then
    found=$(look "$PYTHON")
    case $found in
        ok\ * | odd\ *) echo "${found#* }" ;;
        unfit\ *) die "PYTHON=$PYTHON is ${found#* }: CPython $min or newer is needed" ;;
        no-venv\ *) no_venv "$PYTHON" ;;
        *) die "PYTHON=$PYTHON is not a Python interpreter that runs" ;;
    esac
    exit
fi

want=${1-}
# Newest first, and each is run before it is believed: a pyenv shim may stand for nothing.
candidates() {
    local dir
    printf '%s\n' python3.15 python3.14 python3.13 python3
    for dir in "$(uv python dir 2>/dev/null || echo "${XDG_DATA_HOME:-${HOME-}/.local/share}/uv/python")" \
        "${PYENV_ROOT:-${HOME-}/.pyenv}/versions"; do
        find "$dir" -mindepth 3 -maxdepth 3 -path '*/bin/python3' 2>/dev/null | sort -rV || true
    done
}
bare=
seen=
while read -r candidate; do
    found=$(look "$candidate")
    case $found in
        ok\ *) echo "${found#* }"; exit ;;
        no-venv\ *) bare=${bare:-${found#* }} ;;
        unfit\ *) seen="$seen, ${found#* }" ;;
    esac
done < <(candidates)
[ -z "$bare" ] || no_venv "$bare"
needed="CPython ${want:-$min or newer}"
die "$needed is needed and none was found${seen:+ (only ${seen#, })}: install it (for instance with your system's packages, uv or pyenv) or name it with PYTHON=/path/to/python3"
