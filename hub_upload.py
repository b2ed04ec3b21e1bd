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
from dataset_folders import HUB_ID

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

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


def push(args: argparse.Namespace, folder: Path, card: "ModelCard", pictures: Mapping[str, Path]) -> None:
    """Puts card and pictures {name in the repository: file} into a model folder and uploads it; prints where it is.

    Raises BadInput when it cannot be uploaded: the folder is kept, and the same command tries again."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    for name, picture in pictures.items():
        with replacing(folder / name) as temporary:
            shutil.copyfile(picture, temporary)
    with replacing(folder / CARD) as temporary:
        card.save(temporary)
    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi()
    try:
        with _explained(f"uploading to {args.hub_model_id}"):
            api.upload_folder(repo_id=args.hub_model_id, folder_path=folder, commit_message=f"Upload {folder.name}")
    except BadInput as error:
        raise BadInput(f"{error}; {folder} is finished and kept, the same command again uploads it") from None
    visible = "public" if args.hub_public else "private"
    print(f"uploaded {folder} to {api.endpoint}/{args.hub_model_id} ({visible})", flush=True)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """What the Hub's client raises, as one line with the cure."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise BadInput(f"{what}: the Hub does not know the token; {LOG_IN}") from None
        if status == 403:
            raise BadInput(f"{what}: the token may not write there; {LOG_IN}, or name another owner") from None
        raise BadInput(f"{what}: the Hub answered {status} ({_last_line(error)}); try again later") from None
    except Exception as error:  # dozens of kinds; to the user all mean that the Hub was not reached
        reason = f"{type(error).__name__}: {_last_line(error)}"
        raise BadInput(f"{what}: the Hub cannot be reached ({reason}); check the connection") from None


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1][:200] if lines else type(error).__name__
