# Shared by the scripts of this folder: messages, and a command run with its progress shown.
# shellcheck shell=bash

repo_root() { cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd; }

say() { printf '%s\n' "$*"; }
step() { printf '==> %s\n' "$*"; }
fail() {
    printf '\nerror: %s\n' "$1" >&2
    shift
    local line
    for line in "$@"; do printf '       %s\n' "$line" >&2; done
    exit 1
}

# with_progress LABEL LOG COMMAND... runs the command with its output in LOG and shows how long it has
# been at it and what it does: a line that renews itself on a terminal, a line every ten seconds elsewhere.
with_progress() {
    local label=$1 log=$2 start=$SECONDS pid shown=0 last status=0
    shift 2
    mkdir -p "$(dirname "$log")"
    "$@" >"$log" 2>&1 &
    pid=$!
    # An interrupted build must not leave the command running behind it.
    trap 'kill "$pid" 2>/dev/null; exit 130' INT TERM
    while kill -0 "$pid" 2>/dev/null; do
        if [ -t 1 ]; then
            last=$(tail -n 1 "$log" 2>/dev/null | tr -d '\r' | cut -c 1-60)
            printf '\r\033[K    %s … %d s  %s' "$label" "$((SECONDS - start))" "$last"
            sleep 0.5
        else
            if [ "$((SECONDS - start))" -ge "$((shown + 10))" ]; then
                shown=$((SECONDS - start))
                last=$(tail -n 1 "$log" 2>/dev/null | tr -d '\r' | cut -c 1-80)
                printf '    %s … %d s  %s\n' "$label" "$shown" "$last"
            fi
            sleep 0.2
        fi
    done
    wait "$pid" || status=$?
    trap - INT TERM
    if [ -t 1 ]; then printf '\r\033[K'; fi
    if [ "$status" -eq 0 ]; then
        printf '    %s: done in %d s\n' "$label" "$((SECONDS - start))"
    else
        printf '    %s: failed after %d s, log: %s\n' "$label" "$((SECONDS - start))" "$log"
    fi
    return "$status"
}
