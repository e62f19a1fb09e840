# Parts of a run, each in the environment of its stack, for .ci/run and .ci/nightly: a script lists them in functions made of lines
# `stack NAME VENV` and `part NAME COMMAND...`, of which `choose` reads the names before any of them runs.
# A part that fails doesn't keep the others from running, but fails the run; a stack that can't be set up ends its own parts.

MAIN_STACK=petastorm  # runs all tests; the others run what depends on the version of Spark
listing=true known=() chosen=() ready='' broken=''
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
touch "$logs/results"

tests() { make --no-print-directory pytest ARGS="--dist loadfile --durations=25 $*"; }

# In a session without any setting of ours, as a user has it.
plain_tests() { SPARKDIFF_PLAIN_SPARK=true tests "$@"; }

# stack NAME VENV: the environment of the parts after it.
stack() { export STACK=$1 VENV=$2; }

part() {
    if $listing; then known+=("$1"); return; fi
    [[ " ${chosen[*]} " == *" $1 "* ]] || return 0
    if [ "$ready" != "$STACK" ] && [ "$broken" != "$STACK" ]; then
        if timed "setup of the $STACK stack" bash tools/setup.sh java dev; then ready=$STACK; else broken=$STACK; fi
    fi
    if [ "$broken" = "$STACK" ]; then printf 'not run: %s\n' "$1" >> "$logs/results"; else timed "$@"; fi
}

# timed NAME COMMAND...: runs it, and notes its outcome, its minutes and its last line, which is pytest's summary.
timed() {
    local name=$1 start=$SECONDS outcome=passed log seconds
    shift
    log=$(mktemp -p "$logs")
    printf '\n=== %s\n' "$name"
    "$@" 2>&1 | tee "$log" || outcome=FAILED
    seconds=$((SECONDS - start))
    printf '%-6s %5d.%d min  %s: %s\n' "$outcome" $((seconds / 60)) $((seconds % 60 / 6)) "$name" \
        "$(grep -v '^make' "$log" | tail -n 1)" >> "$logs/results"
    printf '=== %s %s\n' "$name" "$outcome"
    [ "$outcome" = passed ]
}

# choose FUNCTION [PART...]: keeps these of the parts that the function lists, or all; another name is an error that lists them.
choose() {
    "$1"
    listing=false
    chosen=("${@:2}")
    [ ${#chosen[@]} -gt 0 ] || chosen=("${known[@]}")
    local name
    for name in "${chosen[@]}"; do
        if [[ " ${known[*]} " != *" $name "* ]]; then
            printf '%s has no part %q; its parts are: %s\n' "$0" "$name" "${known[*]}" >&2
            exit 2
        fi
    done
}

finish() {
    printf '\n=== all parts, %d min\n' $((SECONDS / 60))
    cat "$logs/results"
    ! grep -qE '^(FAILED|not run)' "$logs/results"
    exit
}
