"""A finished model on its way to the Hugging Face Hub: the repository made before training, filled after it.

Knows tokens, names and who may see a repository, not what is in a model folder; the card is model_card.py's.
`ViZDoomPPO/hub_repository.py` is its counterpart for stage 1, which imports nothing from here. Used by both trainers.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import processes
from artifacts import replacing
from command_line import BadInput
from dataset_folders import HUB_ID, is_of_this_machine

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
CARD = "README.md"


def add_hub_flags(arguments: argparse.ArgumentParser) -> None:
    """The flags by which a trainer is told to upload what it made."""
    add = arguments.add_argument
    add("--push_to_hub", action="store_true", help="upload the finished model with a card to the Hugging Face Hub")
    add("--hub_model_id", metavar="OWNER/NAME", help="repository for --push_to_hub; made where there is none")
    add("--hub_public", action="store_true", help="let everybody see it; without this flag it is private")


def check_hub_flags(args: argparse.Namespace) -> None:
    """Raises BadInput for flags that do not go together, without asking the Hub."""
    if args.push_to_hub and not args.hub_model_id:
        raise BadInput("--push_to_hub: where to? add --hub_model_id OWNER/NAME")
    if not args.push_to_hub and (args.hub_model_id or args.hub_public):
        flag = "--hub_model_id" if args.hub_model_id else "--hub_public"
        raise BadInput(f"{flag}: nothing is uploaded without --push_to_hub; add it, or leave this out")
    if args.push_to_hub and not HUB_ID.fullmatch(args.hub_model_id):
        raise BadInput(f"--hub_model_id {args.hub_model_id}: give OWNER/NAME, your user's or organization's")


def open_repository(args: argparse.Namespace) -> None:
    """Makes the repository, or finds it there, so that the upload can fail only for what happens later.

    Nothing without --push_to_hub; of several processes the first one asks for all. Raises BadInput without a token,
    without the right to write, without a connection, and where what is there is public though it should be private, or
    the other way round."""
    if not args.push_to_hub or processes.rank() > 0:
        return
    from huggingface_hub import HfApi, constants, get_token

    repo_id, what = args.hub_model_id, f"--hub_model_id {args.hub_model_id}"
    if constants.is_offline_mode():
        raise BadInput(f"{what}: HF_HUB_OFFLINE is set, nothing can be uploaded; unset it, or leave out --push_to_hub")
    if get_token() is None:
        raise BadInput(f"{what}: there is no token for the Hub; {LOG_IN}")
    api = HfApi()
    with _explained(what):
        api.whoami()
        api.create_repo(repo_id, private=not args.hub_public, exist_ok=True)
        api.auth_check(repo_id, write=True)
        is_private = api.model_info(repo_id).private
    if is_private == args.hub_public:
        there, cure = ("private", "leave out --hub_public") if is_private else ("public", "add --hub_public")
        raise BadInput(f"{what}: is there already and {there}; {cure}, or name another")


def push(args: argparse.Namespace, folder: Path, card: str, pictures: Mapping[str, Path]) -> None:
    """Puts card and pictures {name in the repository: file} into a model folder and uploads it; prints where it is.

    A card that a person edited stays: the folder's is uploaded as it is, one on the Hub is not written over by ours.
    Raises BadInput when it cannot be uploaded: the folder is kept, and the same command tries again."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    from model_card import is_untouched

    for name, picture in pictures.items():
        with replacing(folder / name) as temporary:
            shutil.copyfile(picture, temporary)
    mine = folder / CARD
    if not mine.is_file() or is_untouched(mine):
        with replacing(mine) as temporary:
            temporary.write_text(card, encoding="utf-8")
    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi()
    try:
        with _explained(f"uploading to {args.hub_model_id}"):
            theirs = _card_on_hub(api, args.hub_model_id)
            keeps_theirs = theirs is not None and is_untouched(mine) and not is_untouched(theirs)
            if keeps_theirs:
                told = f"its {CARD} was edited by hand and stays; the new one is {mine}"
                print(f"{args.hub_model_id}: {told}, delete the one there to have it", flush=True)
            api.upload_folder(
                repo_id=args.hub_model_id,
                folder_path=folder,
                commit_message=f"Upload {folder.name}",
                ignore_patterns=[CARD] if keeps_theirs else None,
            )
    except BadInput as error:
        raise BadInput(f"{error}; {folder} is finished and kept, the same command again uploads it") from None
    visible = "public" if args.hub_public else "private"
    print(f"uploaded {folder} to {api.endpoint}/{args.hub_model_id} ({visible})", flush=True)


def _card_on_hub(api: "HfApi", repo_id: str) -> Path | None:
    """A copy of the repository's card, where it has one."""
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        return Path(api.hf_hub_download(repo_id, CARD))
    except RemoteEntryNotFoundError:
        return None


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
    if is_of_this_machine(error):
        return f"{error.filename or 'a file here'} ({error.strerror}); make room, or see to its permission"
    return f"it failed ({reason}); try again"


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1][:200] if lines else type(error).__name__
