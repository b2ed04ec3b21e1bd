#!/usr/bin/env bash
# Sets up .venv, then lints and runs every test; flags go to pytest: bash test.sh -m "not slow"
set -euo pipefail
cd "$(dirname "$0")"
bash setup.sh --tests
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest "$@"
