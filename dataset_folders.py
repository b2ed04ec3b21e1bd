"""A data set by its folder or by its id on the Hub.

Knows names and downloads, not what is in the files: parquet and tensors are read, never code. Used by every script that
takes --dataset_basepath, first of all.
"""

import re
from pathlib import Path

from command_line import BadInput

FILES = {"episodes": ("*.parquet",), "latents": ("*.pt", "*.json", "*.safetensors")}
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def public_name(folder_or_id: str | Path) -> str:
    """How others may know a folder or Hub id: an id as it is, of a folder its own name, not where it lies."""
    path, name = Path(folder_or_id), str(folder_or_id)
    return name if HUB_ID.fullmatch(name) and not path.exists() else path.resolve().name


def cure_for_fetching() -> str:
    """What to do where the Hub gives nothing."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set and nothing of it is here from before: unset it"
    return "check the name and the connection, or log in with `hf auth login`"


def is_of_this_machine(error: BaseException) -> bool:
    """Whether an error of the Hub's client tells of a disk or a folder here; the Hub's own have no error number."""
    is_of_network = isinstance(error, ConnectionError | TimeoutError)
    return isinstance(error, OSError) and error.errno is not None and not is_of_network


def dataset_folder(dataset_basepath: str | Path, *kinds: str) -> Path:
    """The folder or file of that name as it is; an id like owner/name becomes the folder it was downloaded to.

    kinds: of what to fetch there, keys of FILES. A second call costs a look at what is new, offline nothing at all.
    Raises BadInput when it is neither there nor to be had, or when the repository has no such files; OSError where the
    disk fails."""
    path, name = Path(dataset_basepath), str(dataset_basepath)
    if path.exists() or not HUB_ID.fullmatch(name) or path.parent.exists():
        return path  # whoever looks for files there says what is missing
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    patterns = [pattern for kind in kinds for pattern in FILES[kind]]
    cure = "check the name, or log in with `hf auth login` if it is private"
    try:
        folder = Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except (RepositoryNotFoundError, GatedRepoError):
        raise BadInput(f"{name}: no such folder, and the Hub shows no such data set; {cure}") from None
    except Exception as error:  # the Hub client raises dozens of kinds; to the user the rest mean no connection
        if is_of_this_machine(error):
            raise
        raise BadInput(
            f"{name}: no such folder, and as a data set it cannot be fetched from the Hub ({type(error).__name__}); "
            f"{cure_for_fetching()}, or name a local folder"
        ) from None
    wanted = {Path(FILES[kind][0]).suffix for kind in kinds}
    if not any(found.suffix in wanted for found in folder.rglob("*")):
        raise BadInput(f"{name}: the data set on the Hub has no {' or '.join(sorted(wanted))} files; name another")
    return folder
