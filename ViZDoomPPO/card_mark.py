"""The line by which a card is known as one that a script wrote and nobody changed.

A card that a person edited, here or on the Hub, no longer has the words that its mark was made of, and stays theirs.
Knows neither the Hub nor what cards say. Used by policy_card.py, data_card.py and hub_repository.py; model_card.py has
its own for stages 2 to 6, which share no code with this one.
"""

import hashlib
import re
from pathlib import Path

CARD_FILE = "README.md"
WORDS = "Written by a script; once edited by hand it stays as it is."
MARK = re.compile(rf"<!-- {re.escape(WORDS)} ([0-9a-f]{{64}}) -->\n\n")


def signed(front_matter: str, text: str) -> str:
    """A whole card: front matter (YAML), the mark, the text."""
    head = f"---\n{front_matter}\n---\n\n"
    return f"{head}<!-- {WORDS} {_digest(head + text)} -->\n\n{text}"


def is_untouched(path: Path) -> bool:
    """Whether a card is as a script wrote it."""
    card = path.read_bytes().decode(errors="replace")
    mark = MARK.search(card)
    return mark is not None and _digest(card[: mark.start()] + card[mark.end() :]) == mark.group(1)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
