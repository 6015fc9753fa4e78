#!/usr/bin/env bash
# Makes the project's own virtual environment, .venv, with Kvasir's Python package (editable) and the tools that
# check it. A second run finds everything in place and ends at once; a broken environment is made anew.
#
#   KVASIR_VENV     where the environment is (default: .venv in the repository)
#   KVASIR_PYTHON   the Python to make it with (default: python3.11, else any Python from 3.10 on)
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
root=$(repo_root)
venv=${KVASIR_VENV:-$root/.venv}
tools=(pytest==9.2.0 pytest-timeout==2.4.0 ruff==0.17.5 mypy==2.4.1 numpy redis==8.1.0 xxhash==4.1.0)

# A command on the PATH may be a shim for a Python that is not there: only one that runs counts.
runs() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }
find_python() {
    local name
    for name in ${KVASIR_PYTHON:-python3.11 python3.12 python3.13 python3.14 python3.10 python3}; do
        if runs "$name"; then
            echo "$name"
            return
        fi
    done
    fail "no usable Python found (tried: ${KVASIR_PYTHON:-python3.10 to python3.14, python3})" \
        "Kvasir's Python package needs Python 3.10 or newer; with vLLM it must be 3.11." \
        "Debian and Ubuntu:  apt install python3.11 python3.11-venv" \
        "elsewhere:          uv python install 3.11, or pyenv install 3.11" \
        "or name one:        KVASIR_PYTHON=/path/to/python3.11 $0"
}

key() {
    printf '%s\n' "${tools[@]}"
    cat "$root/python/pyproject.toml"
    printf '%s\n' "$root"
}
stamp=$venv/.kvasir-python
wanted=$(key | sha256sum | cut -d' ' -f1)
ready() {
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] &&
        "$venv/bin/python" -c 'import importlib.util as u, sys
sys.exit(not all(u.find_spec(m) for m in ("kvasir", "pytest", "numpy", "mypy")))' >/dev/null 2>&1 &&
        [ -x "$venv/bin/ruff" ]
}
if [ -n "${KVASIR_PYTHON:-}" ] && [ -d "$venv" ] && runs "$venv/bin/python"; then
    version='import sys; print(sys.version_info[:2])'
    if ! runs "$KVASIR_PYTHON"; then find_python; fi
    if [ "$("$venv/bin/python" -c "$version")" != "$("$KVASIR_PYTHON" -c "$version")" ]; then
        step "$venv was made with $("$venv/bin/python" -V), not $("$KVASIR_PYTHON" -V): making it anew"
        rm -rf "$venv"
    fi
fi
if ready; then exit 0; fi

rm -f "$stamp"
if [ -d "$venv" ] && ! { runs "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; then
    step "$venv is broken (its Python or its pip does not run): making it anew"
    rm -rf "$venv"
fi
if [ ! -d "$venv" ]; then
    python=$(find_python)
    step "making $venv with $("$python" -V)"
    if ! "$python" -m venv "$venv"; then
        rm -rf "$venv"
        fail "$python can't make virtual environments" \
            "Debian and Ubuntu keep that part in a package of its own:  apt install $python-venv"
    fi
fi
step "installing Kvasir's Python package and the tools that check it into $venv"
log=$venv/setup-python.log
if ! with_progress "pip install" "$log" "$venv/bin/pip" install --no-input \
    --disable-pip-version-check "${tools[@]}" -e "$root/python"; then
    tail -n 15 "$log" >&2
    fail "pip could not install what the checks need (full log: $log)" \
        "Behind a proxy or mirror set PIP_INDEX_URL, PIP_PROXY or PIP_CERT and run it again."
fi
echo "$wanted" >"$stamp"
ready || fail "the environment still does not work" "remove it and run again:  rm -rf $venv && $0"
