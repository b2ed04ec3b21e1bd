"""Lets tests import the project as its scripts do, and keeps them offline. Imports neither torch nor vizdoom."""

import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

os.environ["HF_HUB_OFFLINE"] = "1"
for folder in (REPOSITORY / "tests", REPOSITORY / "ViZDoomPPO", REPOSITORY):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
