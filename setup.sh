#!/usr/bin/env bash
# Makes .venv beside this file and installs the pinned requirements into it; run again, it does nothing. With --tests
# also what the tests need; with --cuda PyTorch with CUDA although no NVIDIA driver is here, as while an image is built.
# Used by demo.sh, test.sh and Dockerfile.
set -euo pipefail
cd "$(dirname "$0")"

requirements=(-r vizdoom_requirements.txt -r diffusion_requirements.txt)
wanted=base
has_gpu=no
for flag in "$@"; do
    case "$flag" in
        --tests) requirements+=(-r tests/requirements.txt); wanted=tests ;;
        --cuda) has_gpu=yes ;;
        *) echo "setup.sh: $flag is no flag of mine; I know --tests and --cuda" >&2; exit 2 ;;
    esac
done
! command -v nvidia-smi >/dev/null 2>&1 || has_gpu=yes
fingerprint=$(cat ./*_requirements.txt tests/requirements.txt ViZDoomPPO/ray_requirements.txt | cksum | cut -d' ' -f1)
if [ -f ".venv/installed-$wanted-$fingerprint" ] || [ -f ".venv/installed-tests-$fingerprint" ]; then
    exit 0
fi

python=""
for candidate in python3.11 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "setup.sh: no Python 3.11 found (python3 is $(python3 --version 2>&1)); install it, for example: apt-get install python3.11 python3.11-venv" >&2
    exit 2
fi
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv .venv

options=(--quiet --disable-pip-version-check)
size="about 3 GB (PyTorch with CUDA)"
if [ "$(uname -s)" = Darwin ]; then
    size="about 400 MB"
elif [ "$has_gpu" = no ]; then
    # Without an NVIDIA driver PyTorch's CPU wheels do: a tenth of the size. They live on PyTorch's own index.
    cpu_index=https://download.pytorch.org/whl/cpu
    if .venv/bin/python -c "import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + '/torch/', timeout=5)" "$cpu_index" 2>/dev/null; then
        options+=(--extra-index-url "$cpu_index")
        size="about 500 MB (PyTorch for the CPU)"
    else
        size="about 500 MB where pip finds a CPU build of PyTorch, else about 3 GB"
    fi
fi
echo "installing into .venv: $size to download, once"
.venv/bin/python -m pip install "${options[@]}" "${requirements[@]}"
touch ".venv/installed-$wanted-$fingerprint"
