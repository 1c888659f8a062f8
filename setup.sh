#!/usr/bin/env bash
# Makes .venv with everything `make demo` and `make test` need. Takes the Python named by $PYTHON, else python3.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "set-up needs Python 3.11 or newer; '$python' is $("$python" -V 2>&1 || echo absent). Set PYTHON=/path/to/python3.11" >&2
    exit 1
}
"$python" -c 'import venv, ensurepip' 2>/dev/null || {
    echo "this Python has no venv; on Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 1
}
[ -x .venv/bin/python ] || "$python" -m venv .venv

# Plain torch from the public index is a CUDA build of gigabytes. Without a GPU take a CPU build: the one that pip's
# configured sources have, else PyTorch's own index. One install for everything, so that numpy stays below 2.
torch=torch sources=()
if ! [ -e /dev/nvidia0 ]; then
    torch=$(sed -n 's/^\(torch==.*\)$/\1+cpu/p' constraints.txt)
    if ! .venv/bin/pip install --quiet --dry-run --no-deps "$torch" >/dev/null 2>&1; then
        sources=(--extra-index-url https://download.pytorch.org/whl/cpu)
    fi
fi
echo "installing into .venv ($torch) ..."
# -qq: errors only; pip warns at length about sources it does not need.
.venv/bin/pip install -qq --disable-pip-version-check --constraint constraints.txt \
    ${sources[@]+"${sources[@]}"} "$torch" --editable '.[dev]'
touch .venv/ready
