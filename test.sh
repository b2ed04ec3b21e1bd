#!/usr/bin/env bash
# Sets up .venv, then lints and runs every test, two at a time; flags go to pytest: bash test.sh -m "not slow"
set -euo pipefail
cd "$(dirname "$0")"
bash setup.sh --tests
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# One thread a test process: two that spin on each other's core take many times as long.
OMP_NUM_THREADS=1 exec .venv/bin/python -m pytest -n 2 --dist worksteal "$@"
