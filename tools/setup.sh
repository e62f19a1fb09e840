#!/usr/bin/env bash
# Creates the virtual environment, if it does not exist:  tools/setup.sh [java] demo|dev
#   java   first checks that Spark will find a Java that it can use
#   demo   installs what `make demo` needs (with Petastorm if the Python version allows it)
#   dev    also installs what linting, tests and benchmarks need
# Reads VENV (default .venv), STACK (petastorm, modern or spark35) and PYTHON (an interpreter); STACK and PYTHON have defaults.
# A stamp file records everything that the installation depends on. It is written last, so that an interrupted
# installation is repeated from the start. pip's own settings apply (PIP_INDEX_URL, PIP_FIND_LINKS, ... choose the build of torch).
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
WANTED=${STACK:-}
case $WANTED in "" | petastorm | modern | spark35) ;; *) echo "sparkdiff: STACK must be petastorm, modern or spark35, got '$WANTED'" >&2; exit 1 ;; esac

say() { printf 'sparkdiff: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

check_java() {
    local java=java version major
    if [ -n "${JAVA_HOME:-}" ]; then java=$JAVA_HOME/bin/java; fi          # as Spark chooses
    version=$("$java" -version 2>&1) \
        || die "no Java found${JAVA_HOME:+ in JAVA_HOME=$JAVA_HOME}. Install Java 17, e.g. 'apt install openjdk-17-jre-headless' or 'brew install openjdk@17'."
    major=$(printf '%s\n' "$version" | sed -n 's/.* version "\(1\.\)\{0,1\}\([0-9]*\).*/\2/p' | head -n 1)
    [ "${major:-0}" -ge 17 ] \
        || die "Java ${major:-of an unknown version} found ($java), Spark 4 needs 17 or newer. Install Java 17 and point JAVA_HOME at it."
    if [ "$major" -gt 21 ]; then say "note: Java $major found; Spark 4.0 is documented for 17 and 21 (if it fails, point JAVA_HOME at one of them)"; fi
}

# The stack for an interpreter; empty if it is too old, broken or has no venv module. Python 3.10 is for Spark 3.5 only.
stack_for() {
    "$1" - 2>/dev/null <<'PYTHON' || true
import ensurepip, sys, venv
v = sys.version_info[:2]
print("spark35" if v == (3, 10) else "petastorm" if v == (3, 11) else "modern" if v > (3, 11) else "")
PYTHON
}

# Sets BASE and STACK. First the Petastorm stack, on a Python 3.11 of any name; then the modern stack, on 3.11 or newer.
find_python() {
    local candidate stack wanted candidates=(python3.11 python3.10 python3 python python3.12 python3.13)
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    for wanted in ${WANTED:-petastorm modern}; do
        for candidate in "${candidates[@]}"; do
            stack=$(stack_for "$candidate")
            if [ "$stack" = petastorm ]; then stack=$wanted; fi             # Python 3.11 can have any stack
            if [ -n "$stack" ] && [ "$stack" = "$wanted" ]; then BASE=$candidate STACK=$stack; return; fi
        done
    done
    die "no usable Python found${WANTED:+ for STACK=$WANTED} (tried ${candidates[*]}). Install Python 3.11 with venv, e.g. 'apt install python3.11-venv' or 'brew install python@3.11'."
}

# Everything that an installation depends on; also the path of VENV, because its scripts contain absolute paths.
ingredients() {
    printf '%s %s %s\n' "$PWD/$VENV" "$STACK" "$1"
    "$VENV/bin/python" -c 'import sys; print(sys.version)'
    cat pyproject.toml "constraints/$STACK.txt" tools/setup.sh
}

up_to_date() {
    [ -f "$VENV/sparkdiff-$1.stamp" ] && ingredients "$1" | cmp -s - "$VENV/sparkdiff-$1.stamp"
}

make_venv() {
    local clear=""
    find_python
    if [ -e "$VENV/pyvenv.cfg" ]; then
        say "replacing $VENV, which is incomplete, broken or of another stack"
        clear=--clear
    elif [ -n "$(ls -A "$VENV" 2>/dev/null)" ]; then
        die "$VENV exists and is not a virtual environment: move it, or choose another folder with VENV=."
    fi
    "$BASE" -m venv --without-pip $clear "$VENV" || die "'$BASE -m venv $VENV' failed (see above)."
    printf '%s\n' "$STACK" > "$VENV/sparkdiff-stack"
}

# Only one installation at a time may change VENV: a second call waits for the first, and then finds the work done. The kernel
# holds the lock on a file that stays open until this script ends, so a killed call leaves no lock. Python takes the lock,
# because macOS has no flock command.
lock() {
    local python
    for python in "${PYTHON:-}" python3 python3.11 python3.10 python; do
        if [ -n "$python" ] && "$python" -c 'import fcntl' 2>/dev/null; then break; fi
        python=""
    done
    if [ -z "$python" ]; then return; fi                                     # make_venv reports what is missing
    mkdir -p "$(dirname "$VENV")"
    exec 9> "$VENV.lock"
    if "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null; then return; fi
    say "another call is setting up $VENV: waiting for it"
    "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
}

setup() {
    local level=$1 extras=dev,benchmarks found pins
    found=$(stack_for "$VENV/bin/python")
    if [ -n "$found" ] && [ -f "$VENV/sparkdiff-stack" ]; then found=$(cat "$VENV/sparkdiff-stack"); fi
    if [ -n "$found" ] && [ "${WANTED:-$found}" = "$found" ] && [ ! -e "$VENV/sparkdiff-installing" ]; then
        STACK=$found
    else
        make_venv
    fi
    pins=$(grep -E '^(pyspark|petastorm|torch)==' "constraints/$STACK.txt" | tr '\n' ' ')
    say "$STACK stack (${pins% }) on $("$VENV/bin/python" -V) in $VENV"
    if up_to_date dev || { [ "$level" = demo ] && up_to_date demo; }; then return; fi

    if [ "$level" = demo ]; then extras=cli,report; fi
    if [ "$STACK" = modern ] && [ "$level" = dev ]; then extras=connect,$extras; fi
    if [ "$STACK" = petastorm ] && [ "$level" = dev ]; then extras=mlflow,tensorboard,$extras; fi
    if [ "$STACK" != spark35 ] && [ "$level" = dev ]; then extras=notebooks,$extras; fi
    if [ "$STACK" != modern ]; then extras=petastorm,$extras; fi
    say "installing sparkdiff[$extras]: this takes some minutes, once"
    rm -f "$VENV"/sparkdiff-*.stamp
    touch "$VENV/sparkdiff-installing"          # pip mistakes a half-copied package for an installed one
    "$VENV/bin/python" -m pip --version > /dev/null 2>&1 || "$VENV/bin/python" -m ensurepip --default-pip
    # Python compiles a module when it is first imported; to compile all of them takes half of the installation.
    "$VENV/bin/python" -m pip install --no-input --disable-pip-version-check --no-compile \
        --constraint "constraints/$STACK.txt" --editable ".[$extras]" \
        || die "the installation failed (see above); the next call starts it again."
    rm "$VENV/sparkdiff-installing"
    ingredients "$level" > "$VENV/sparkdiff-$level.stamp"
}

for task in "$@"; do
    case $task in
        java) check_java ;;
        demo | dev) lock; setup "$task" ;;
        *) die "tools/setup.sh [java] demo|dev, got '$task'." ;;
    esac
done
