# Sourced by scripts/demo, scripts/test and scripts/bench: makes .venv hold exactly what constraints.txt pins.
# Sets `python` to the interpreter of .venv. A second run costs one comparison of a stamp.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
python="$root/.venv/bin/python"

fail() {
    echo "nodeless set-up: $1" >&2
    exit 1
}

base_python() {
    local candidate
    for candidate in "${NODELESS_PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
        [ -n "$candidate" ] && command -v "$candidate" > /dev/null || continue
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or later with venv and pip on PATH; install one, or name it in NODELESS_PYTHON"
}

set_up() {
    local base stamp
    stamp=$(cat constraints.txt pyproject.toml | sha256sum | cut -c1-64)
    if [ -x "$python" ] && [ "$(cat .venv/nodeless-stamp 2> /dev/null)" = "$stamp" ]; then
        return
    fi
    exec 9> .venv.lock
    flock 9
    if [ "$(cat .venv/nodeless-stamp 2> /dev/null)" != "$stamp" ]; then
        base=$(base_python)
        echo "nodeless set-up: preparing .venv with $("$base" --version) (once; about a minute)" >&2
        rm -f .venv/nodeless-stamp
        "$base" -m venv .venv
        "$python" -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt >&2
        "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . >&2
        echo "$stamp" > .venv/nodeless-stamp
    fi
    flock -u 9
    exec 9>&-
}

set_up
export PATH="$root/.venv/bin:$PATH"
