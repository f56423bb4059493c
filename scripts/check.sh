#!/usr/bin/env bash
# check.sh GROUP... - run the checks of the groups lint, unit, loom, pytest, conformance and load, all
# of them even when one fails, then sum up. Expects what setup.sh makes. Where CI is set, nothing may
# be left out.
# shellcheck disable=SC2329 # step calls functions by their names
set -uo pipefail
cd "$(dirname "$0")/.." || exit

venv=$PWD/.venv
load=bench/load/Cargo.toml
logs=target/check
mkdir -p "$logs"
summary=()
failed=0

# step NAME COMMAND... - run it, keep its closing line for the summary
step() {
    local name=$1 log="$logs/${1//[^a-z0-9]/-}.log" start=$SECONDS result=ok closing
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    "$@" 2>&1 | tee "$log" || { result=FAILED; failed=1; }
    closing=$(closing_line "$log")
    [[ $closing != "0 passed, 0 failed"* ]] || { result=FAILED; failed=1; } # no test matched
    [ $result = ok ] || closing="$closing (${log})"
    summary+=("$(printf '%-6s %-28s %4ds  %s' "$result" "$name" $((SECONDS - start)) "${closing# }")")
}

skip() { # NAME REASON
    local result=skip
    [ -z "${CI-}" ] || { result=FAILED; failed=1; }
    summary+=("$(printf '%-6s %-28s        %s' "$result" "$1" "$2")")
}

# What nextest, pytest (and tests.conformance, likewise) or cargo test (several binaries, so the sum)
# say last of how many tests ran.
closing_line() {
    sed 's/\x1b\[[0-9;]*m//g' "$1" | awk '
        /^ *Summary \[.*tests? run/ { sub(/^ *Summary \[[^]]*\] */, ""); last = $0 }
        /^=+ .* in [0-9.]+s.* =+$/ { gsub(/^=+ | =+$/, ""); last = $0 }
        /^test result:/ { cargo = 1; passed += $4; bad += $6; ignored += $8 }
        END { print cargo ? passed " passed, " bad " failed, " ignored " ignored" : last }'
}

# cargo-nextest (a process and a time limit per test) if it is there, else cargo's own runner.
if cargo nextest --version >/dev/null 2>&1; then
    rust_tests() { cargo nextest run --config-file scripts/nextest.toml "$@"; }
else
    rust_tests() { cargo test "$@" -- --test-threads=1; }
fi

# loom explores interleavings: optimised, but without the release build's slow link.
loom_tests() (
    export RUSTFLAGS="--cfg loom" CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
    rust_tests --release --no-default-features --lib --target-dir target/loom loom
)

# With the extension's own features. .venv keeps its path when it is remade with another
# interpreter, and the signature is what tells pyo3's build script so.
clippy_python() {
    PYO3_PYTHON=$venv/bin/python PYO3_ENVIRONMENT_SIGNATURE=$(cat "$venv/.interpreter") \
        cargo clippy --all-targets -- -D warnings
}

lint() {
    if cargo fmt --version >/dev/null 2>&1; then
        step "cargo fmt" cargo fmt --check
        step "cargo fmt, load client" cargo fmt --manifest-path "$load" --check
    else
        skip "cargo fmt" "rustfmt is not installed"
    fi
    if cargo clippy --version >/dev/null 2>&1; then
        step "cargo clippy" clippy_python
        step "cargo clippy, no Python" cargo clippy --no-default-features --all-targets -- -D warnings
        step "cargo clippy, load client" cargo clippy --manifest-path "$load" --all-targets -- -D warnings
    else
        skip "cargo clippy" "clippy is not installed"
    fi
    step "ruff check" "$venv/bin/ruff" check
    step "ruff format" "$venv/bin/ruff" format --check
    step "mypy" "$venv/bin/mypy"
}

unit() { step "Rust tests" rust_tests --no-default-features --lib; }
loom() { step "Rust tests, loom" loom_tests; }
load() { step "load client's tests" cargo test --manifest-path "$load"; }

pytest() {
    step "stubs match the extension" env MYPYPATH=python \
        "$venv/bin/stubtest" --mypy-config-file pyproject.toml \
        --allowlist scripts/stubtest.allow kloop._kloop
    # The stock loop, and kloop on either driver.
    step "pytest, asyncio and io_uring" env KLOOP_DRIVER=uring "$venv/bin/python" -m pytest
    step "pytest, epoll" env KLOOP_DRIVER=epoll KLOOP_TESTS_LOOPS=kloop "$venv/bin/python" -m pytest
}

conformance() {
    local driver
    if "$venv/bin/python" -c 'import test.test_asyncio' 2>/dev/null; then
        for driver in uring epoll; do
            step "CPython's tests, $driver" env KLOOP_DRIVER=$driver \
                "$venv/bin/python" -m tests.conformance
        done
    else
        skip "CPython's tests" "this Python comes without its tests"
    fi
}

for group; do
    case $group in
        lint) lint ;;
        unit) unit ;;
        loom) loom ;;
        pytest) pytest ;;
        load) load ;;
        conformance) conformance ;;
        *) echo "check.sh: no group $group" >&2; exit 2 ;;
    esac
done

printf '\n== %s, rustc %s\n' "$("$venv/bin/python" --version)" "$(rustc --version | cut -d' ' -f2)"
printf '%s\n' "${summary[@]}"
exit $failed
