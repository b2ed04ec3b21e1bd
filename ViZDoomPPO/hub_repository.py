"""A repository on the Hugging Face Hub: made and found writable before the work, filled after it, and read.

Knows tokens, names and who may see a repository, not what is uploaded. `hub_upload.py` is its counterpart for stages 2
to 6, which stage 1 does not import. Used by both scripts of this folder.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from card_mark import CARD_FILE, is_untouched
from console import BadInput

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
POLICY_FILE = "best_model.zip"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def add_hub_flags(arguments: argparse.ArgumentParser) -> None:
    """The flags by which a trainer is told to upload what it made."""
    add = arguments.add_argument
    add("--push_to_hub", action="store_true", help="upload the finished policy with a card to the Hugging Face Hub")
    add("--hub_model_id", metavar="OWNER/NAME", help="repository for --push_to_hub; made where there is none")
    add("--hub_public", action="store_true", help="let everybody see it; without this flag it is private")


def check_hub_flags(args: argparse.Namespace) -> None:
    """Raises BadInput for flags that do not go together, without asking the Hub."""
    if args.push_to_hub and not args.hub_model_id:
        raise BadInput("--push_to_hub: where to? add --hub_model_id OWNER/NAME")
    if not args.push_to_hub and (args.hub_model_id or args.hub_public):
        flag = "--hub_model_id" if args.hub_model_id else "--hub_public"
        raise BadInput(f"{flag}: nothing is uploaded without --push_to_hub; add it, or leave this out")


def fetch_policy(repo_id: str) -> Path:
    """The policy file of a repository: its best_model.zip, else its only .zip. Offline, what was fetched before.

    Raises BadInput when it cannot be had, or when there is none or more than one."""
    from huggingface_hub import constants, snapshot_download

    _show_no_bars_to_files()
    try:
        folder = Path(snapshot_download(repo_id, allow_patterns=["*.zip"]))
    except Exception as error:  # the Hub's client raises dozens of kinds; to the user the rest mean "cannot be had"
        if _is_of_this_machine(error):
            raise BadInput(f"--policy {repo_id}: {_reason_and_cure(error)}") from None
        cure = "check the name and the connection, or log in with `hf auth login` if it is private"
        if constants.is_offline_mode():
            cure = "HF_HUB_OFFLINE is set and nothing of it is here from before: unset it"
        what = f"no such file, and it cannot be fetched from the Hub ({type(error).__name__})"
        raise BadInput(f"--policy {repo_id}: {what}; {cure}") from None
    found = sorted(folder.glob("*.zip"))
    best = [path for path in found if path.name == POLICY_FILE] or found
    if len(best) != 1:
        what = f"{len(found)} .zip files, none of them {POLICY_FILE}" if found else "no .zip file"
        raise BadInput(f"--policy {repo_id}: the repository has {what}; download the one to play and give its path")
    return best[0]


def open_repository(repo_id: str, *, flag: str, repo_type: str, is_public: bool) -> str:
    """Makes a repository, or finds it there, so that an upload can fail only for what happens later; returns its id.

    repo_id: a name without owner is the user's own. flag: that named it. repo_type: `model` or `dataset`. Raises
    BadInput without a token, without the right to write, without a connection, and where what is there is public though
    it should be private, or the other way round."""
    if not HUB_ID.fullmatch(repo_id if "/" in repo_id else f"me/{repo_id}"):
        raise BadInput(f"{flag} {repo_id}: not a name on the Hub; give OWNER/NAME, your user's or organization's")
    from huggingface_hub import HfApi, constants, get_token

    if constants.is_offline_mode():
        raise BadInput(f"{flag} {repo_id}: HF_HUB_OFFLINE is set, nothing can be uploaded; unset it")
    if get_token() is None:
        raise BadInput(f"{flag} {repo_id}: there is no token for the Hub; {LOG_IN}")
    api = HfApi()
    with _explained(f"{flag} {repo_id}"):
        user = api.whoami()["name"]
        repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
        api.create_repo(repo_id, repo_type=repo_type, private=not is_public, exist_ok=True)
        api.auth_check(repo_id, repo_type=repo_type, write=True)
        is_private = api.repo_info(repo_id, repo_type=repo_type).private
    if is_private == is_public:
        there, wanted = ("private", "leave out --hub_public") if is_private else ("public", "add --hub_public")
        raise BadInput(f"{flag} {repo_id}: is there already and {there}; {wanted}, or name another")
    return repo_id


def uploaded_files(repo_id: str, repo_type: str) -> dict[str, int]:
    """What a repository holds: path -> bytes. Raises BadInput when the Hub does not say."""
    from huggingface_hub import HfApi

    with _explained(f"looking into {repo_id}"):
        tree = HfApi().list_repo_tree(repo_id, recursive=True, repo_type=repo_type)
        return {entry.path: entry.size for entry in tree if hasattr(entry, "size")}


def upload(folder: Path, repo_id: str, *, repo_type: str, message: str, allow_patterns: list[str] | None = None) -> str:
    """Uploads what is in `folder`; returns the repository's address. Raises BadInput when it cannot be done.

    A card that was edited by hand on the Hub stays, unless the one in `folder` was edited too."""
    from huggingface_hub import HfApi

    _show_no_bars_to_files()
    api = HfApi()
    with _explained(f"uploading to {repo_id}"):
        keeps_card = is_untouched(folder / CARD_FILE) and _has_edited_card(api, repo_id, repo_type)
        if keeps_card:
            print(f"{repo_id}: its {CARD_FILE} was edited by hand and stays; delete it there to have a new one")
        api.upload_folder(
            folder_path=folder,
            repo_id=repo_id,
            repo_type=repo_type,
            commit_message=message,
            allow_patterns=allow_patterns,
            ignore_patterns=[CARD_FILE] if keeps_card else None,
        )
    return f"{api.endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"


def _has_edited_card(api: "HfApi", repo_id: str, repo_type: str) -> bool:
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        return not is_untouched(Path(api.hf_hub_download(repo_id, CARD_FILE, repo_type=repo_type)))
    except RemoteEntryNotFoundError:
        return False


def _show_no_bars_to_files() -> None:
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """What the Hub's client raises, as one line with the cure. A fault of the program stays what it is."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (OSError, HTTPError, RuntimeError, ValueError) as error:
        while isinstance(error, RuntimeError | FileNotFoundError) and error.__cause__ is not None:
            error = error.__cause__  # the client's "while uploading this file", "neither there nor in the cache"
        raise BadInput(f"{what}: {_reason_and_cure(error)}") from None


def _reason_and_cure(error: BaseException) -> str:
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return f"the Hub does not know the token; {LOG_IN}"
        if status == 403:
            return f"the token may not write there; {LOG_IN}, or name another owner"
        return f"the Hub answered {status} ({_last_line(error)}); try again later"
    reason = f"{type(error).__name__}: {_last_line(error)}"
    if isinstance(error, HTTPError | ConnectionError | TimeoutError):
        return f"the Hub cannot be reached ({reason}); check the connection"
    if _is_of_this_machine(error):
        return f"{error.filename or 'a file here'} ({error.strerror}); make room, or see to its permission"
    return f"it failed ({reason}); try again"


def _is_of_this_machine(error: BaseException) -> bool:
    """Whether it tells of a disk or a folder here; the Hub's own errors have no number."""
    is_of_network = isinstance(error, ConnectionError | TimeoutError)
    return isinstance(error, OSError) and error.errno is not None and not is_of_network


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1][:200] if lines else type(error).__name__
