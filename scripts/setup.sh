#!/usr/bin/env bash
# setup.sh [tools] [extension] - make .venv with the interpreter that find-python.sh finds, then the
# parts named: the Python tools that tests/requirements.txt pins, the release build of the extension.
# Does only what is not done yet. Without $PYTHON a .venv that works is kept.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { echo "kloop: $*" >&2; exit 1; }

check_cc() {
    local out
    command -v cc >/dev/null || die "no C compiler: install one that runs as cc (on Debian and Ubuntu: gcc and libc6-dev)"
    out=$(mktemp)
    echo 'int main(void) { return 0; }' | cc -x c -o "$out" - 2>/dev/null \
        || { rm -f "$out"; die "cc cannot link a C program: install the C library's development files (on Debian and Ubuntu: libc6-dev)"; }
    rm -f "$out"
}

check_rust() {
    local need have how="with rustup (https://rustup.rs) or your system's packages"
    need=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    command -v cargo >/dev/null || die "no Rust: install Rust $need or newer $how"
    have=$(rustc --version 2>/dev/null | cut -d' ' -f2) || true
    [ -n "$have" ] || die "rustc does not run: install Rust $need or newer $how (with rustup: rustup default stable)"
    [ "$(printf '%s\n' "$need" "${have%%-*}" | sort -V | head -n1)" = "$need" ] \
        || die "Rust $have is too old: install Rust $need or newer $how (with rustup: rustup update stable)"
}

# One line that tells one interpreter from another.
identity() { "$1" -c 'import os, sys; print(os.path.realpath(sys._base_executable), sys.version.split()[0], sys.abiflags)' 2>/dev/null; }

# .venv/.interpreter is written last, so it also says that the .venv is whole.
venv_is() { [ -f .venv/.interpreter ] && [ "$(identity .venv/bin/python)" = "$1" ]; }

make_venv() {
    local python
    if [ -z "${PYTHON-}" ] && venv_is "$(cat .venv/.interpreter 2>/dev/null)"; then return; fi
    python=$(scripts/find-python.sh)
    if venv_is "$(identity "$python")"; then return; fi
    echo "== .venv with $("$python" --version) ($python)"
    rm -rf .venv
    "$python" -m venv .venv || die "$python could not make .venv: see above"
    identity .venv/bin/python >.venv/.interpreter
}

pip_install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"; }

install_tools() {
    cmp -s tests/requirements.txt .venv/.requirements && return
    echo "== Python tools (tests/requirements.txt)"
    pip_install -r tests/requirements.txt
    cp tests/requirements.txt .venv/.requirements
}

# The package is installed as a link to python/, so only what is compiled or declared makes it stale.
extension_is_fresh() {
    compgen -G 'python/kloop/_kloop*.so' >/dev/null && [ -f .venv/.extension ] \
        && [ -z "$(find src build.rs Cargo.toml Cargo.lock pyproject.toml -newer .venv/.extension -print -quit)" ]
}

build_extension() {
    local maturin
    if extension_is_fresh; then return; fi
    maturin=$(grep '^maturin==' tests/requirements.txt)
    [ "$maturin" = "maturin==$(.venv/bin/maturin --version 2>/dev/null | cut -d' ' -f2)" ] || pip_install "$maturin"
    echo "== extension (maturin develop --release)"
    touch .venv/.extension.new # dated before the build: what is edited meanwhile is built next time
    env -u CONDA_PREFIX VIRTUAL_ENV="$PWD/.venv" .venv/bin/maturin develop --release
    mv .venv/.extension.new .venv/.extension
}

check_cc
check_rust
make_venv
for part; do
    case $part in
        tools) install_tools ;;
        extension) build_extension ;;
        *) die "setup.sh: no part $part" ;;
    esac
done
