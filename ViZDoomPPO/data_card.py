"""The card of a data set: the README.md by which the Hub's viewer and `datasets.load_dataset` show its pictures.

Written from the episode files alone: their `frames` are plain bytes, and it is the card's `dataset_info` that declares
them as images. Knows the parquet format, not the Hub. Used by `load_model_generate_dataset.py --upload`.
"""

import glob
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from card_mark import CARD_FILE, is_untouched, signed
from console import BadInput, writing
from episode_recorder import IDENTITY_FILE, METADATA_KEY, partial_path

SPLIT_NAMES = {"train": "train", "eval": "validation"}  # folder -> split, as the Hub calls them
SHARED_FACTS = ("action_table", "alignment", "tics_per_second", "tics_per_row", "tics_per_step", "width", "height")
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
COLUMNS = {  # what a row's columns mean
    "frames": "the picture seen before the action, {width}x{height}, RGB, as {image_format} bytes",
    "actions": "id of the action chosen on seeing it, see the table",
    "step_ids": "the agent's step within the episode; it returns to 0 where the next episode begins",
    "health": "health in that picture, points",
    "ammo": "ammunition of the weapon in hand",
    "frags": "opponents killed so far",
    "position_x": "place on the map, map units",
    "position_y": "place on the map, map units",
    "position_angle": "where the player looks, degrees, counter-clockwise from east",
    "camera_z": "how high the eye is, map units",
    "depth": "how far what is seen lies ahead, every 4th pixel of every 4th row, as a grey PNG: 0 weapon and status "
    "bar, which do not move with the world, else steps of the footer's `camera.units_per_depth` map units",
    "reward": "what the action earned until the next row",
    "dead": "whether the player is dead in that picture",
}
FREEDOM = (
    "The pictures show textures and sprites of [Freedoom](https://freedoom.github.io), © Contributors to the Freedoom "
    "project, BSD 3-Clause licence."
)
UNKNOWN = "The pictures are those of the game `{scenario}`; the terms of whoever made it apply."


@dataclass
class Split:
    """Some of a data set's files: `folders` as posix paths below its root, in order."""

    folders: list[str] = field(default_factory=list)
    episodes: int = 0
    rows: int = 0
    file_bytes: int = 0
    memory_bytes: int = 0


@dataclass
class Contents:
    """What the files of a folder say together."""

    facts: dict[str, Any]  # of the first file; SHARED_FACTS are those of every file
    columns: dict[str, str]  # name -> arrow type
    splits: dict[str, Split]  # by name, without empty ones
    scenarios: list[str]
    actions: Counter[int]  # id -> rows
    recordings: dict[str, dict[str, Any]]  # folder -> what it was recorded with

    @property
    def rows(self) -> int:
        return sum(split.rows for split in self.splits.values())

    @property
    def episodes(self) -> int:
        return sum(split.episodes for split in self.splits.values())


def find_episodes(folder: Path) -> list[Path]:
    """Every finished episode below `folder`, sorted: what a data set consists of, beside its card."""
    found = sorted(folder.rglob("episode_*.parquet"))
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def content_patterns(folder: Path) -> list[str]:
    """Glob patterns of what a data set consists of, relative to `folder`: its card and its episodes, nothing else."""
    parents = sorted({path.parent.relative_to(folder).as_posix() for path in find_episodes(folder)})
    return [CARD_FILE, *map(_episodes_of, parents)]


def _episodes_of(parent: str) -> str:
    """The pattern of a folder's episodes; no `*` or `[` of its name is one."""
    return f"{glob.escape(parent)}/episode_*.parquet".removeprefix("./")


def check_content(folder: Path, repo_id: str, there: dict[str, int], *, is_complete: bool) -> None:
    """Raises BadInput when the repository holds episodes that are not those of `folder`: they would be mixed or lost.

    there: the repository's files, path -> bytes.  is_complete: whether nothing more will be recorded into `folder`."""
    mine = {path.relative_to(folder).as_posix(): path.stat().st_size for path in find_episodes(folder)}
    for path, size in there.items():
        is_missing = is_complete and path not in mine
        if path.endswith(".parquet") and (is_missing or mine.get(path, size) != size):
            what = f"is not in {folder}" if is_missing else f"has other content than the one in {folder}"
            raise BadInput(f"{repo_id} holds {path}, which {what}; name another --hf_repo, or delete it there")


def check_card(folder: Path) -> None:
    """Raises BadInput when `folder` has a README.md that is neither ours nor a data set's card."""
    path = folder / CARD_FILE
    if path.is_file() and "dataset_info:" not in path.read_text(encoding="utf-8", errors="replace"):
        raise BadInput(f"{path} is not the card of a data set (no `dataset_info:` in it); move it away")


def write_card(folder: Path, repo_id: str) -> Contents:
    """Writes `folder`/README.md for a data set that will be called `repo_id`; one edited by hand stays as it is.

    Raises BadInput when there are no episodes, or when they do not go together."""
    check_card(folder)
    contents = read_contents(folder)
    path = folder / CARD_FILE
    if not path.is_file() or is_untouched(path):
        temporary = partial_path(path, os.getpid())
        with writing(path):
            temporary.write_text(card(contents, repo_id), encoding="utf-8")
            os.replace(temporary, path)
    return contents


def read_contents(folder: Path) -> Contents:
    """Reads every episode's footer and actions. Raises BadInput naming the first file that is broken or differs."""
    paths = find_episodes(folder)
    if not paths:
        raise BadInput(f"no episode_*.parquet under {folder}; record some first")
    contents: Contents | None = None
    splits = {name: Split() for name in SPLIT_NAMES.values()}
    scenarios: set[str] = set()
    actions: Counter[int] = Counter()
    for path in paths:
        facts, columns, metadata, ids = _read(path)
        if contents is None:
            contents = Contents(facts, columns, {}, [], actions, _recordings(folder, paths))
        _check_same(path, paths[0], (facts, columns), (contents.facts, contents.columns))
        where = path.parent.relative_to(folder)
        split = splits[SPLIT_NAMES["eval" if "eval" in where.parts else "train"]]
        if where.as_posix() not in split.folders:
            split.folders.append(where.as_posix())
        split.episodes += 1
        split.rows += metadata.num_rows
        split.file_bytes += path.stat().st_size
        split.memory_bytes += sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        scenarios.add(str(facts.get("scenario")))
        actions.update(ids)
    contents.splits = {name: split for name, split in splits.items() if split.episodes}
    contents.scenarios = sorted(scenarios)
    return contents


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str], pq.FileMetaData, list[int]]:
    """(our metadata, columns, the footer, the action of every row) of one file."""
    try:
        with pq.ParquetFile(path) as file:
            facts = json.loads(file.metadata.metadata[METADATA_KEY])
            columns = {column.name: str(column.type) for column in file.schema_arrow}
            return facts, columns, file.metadata, file.read(columns=["actions"])["actions"].to_pylist()
    except (pa.ArrowException, KeyError, TypeError, ValueError, OSError) as error:
        raise BadInput(f"{path} is not an episode of ours ({error!r}); move it away, or record it again") from None


def _check_same(path: Path, first: Path, mine: tuple[dict, dict], its: tuple[dict, dict]) -> None:
    different = [name for name in SHARED_FACTS if mine[0].get(name) != its[0].get(name)]
    if mine[1] != its[1]:
        different.append("columns")
    if different:
        what = f"{path} and {first} differ in {', '.join(different)}"
        raise BadInput(f"{what}; one data set holds one kind of episode, keep them in separate folders")


def _recordings(folder: Path, paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Every recording.json on the way from the root to an episode, by its folder; unreadable ones tell nothing."""
    found = {}
    for parent in sorted({parent for path in paths for parent in path.parents if parent.is_relative_to(folder)}):
        try:
            identity = json.loads((parent / IDENTITY_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(identity, dict):
            found[parent.relative_to(folder).as_posix()] = identity
    return found


def card(contents: Contents, repo_id: str) -> str:
    """The whole README.md."""
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        license="bsd-3-clause" if _is_freedoom(contents) else "unknown",
        pretty_name=repo_id.rpartition("/")[2],
        task_categories=["reinforcement-learning", "image-to-video"],
        size_categories=next((name for limit, name in SIZES if contents.rows < limit), "10M<n<100M"),
        tags=["video-game", "world-model", "gamengen", *(["vizdoom", "doom"] if _is_doom(contents) else [])],
        configs=[{"config_name": "default", "data_files": _data_files(contents)}],
        dataset_info={
            "config_name": "default",
            "features": [{"name": name, "dtype": _dtype(contents, name)} for name in contents.columns],
            "splits": [
                {"name": name, "num_bytes": split.memory_bytes, "num_examples": split.rows}
                for name, split in contents.splits.items()
            ],
            "download_size": sum(split.file_bytes for split in contents.splits.values()),
            "dataset_size": sum(split.memory_bytes for split in contents.splits.values()),
        },
    )
    return signed(data.to_yaml(), _text(contents, repo_id))


def _data_files(contents: Contents) -> list[dict[str, Any]]:
    return [
        {"split": name, "path": [_episodes_of(folder) for folder in split.folders]}
        for name, split in contents.splits.items()
    ]


def _dtype(contents: Contents, column: str) -> str | dict[str, Any]:
    """A column's feature, as `datasets` spells it in a card."""
    names = [row["name"] for row in contents.facts["action_table"]]
    if column in ("frames", "depth"):
        return "image"
    if column == "actions" and len(set(names)) == len(names):
        return {"class_label": {"names": {str(number): name for number, name in enumerate(names)}}}
    return {"float": "float32", "double": "float64"}.get(contents.columns[column], contents.columns[column])


def _is_doom(contents: Contents) -> bool:
    return "health" in contents.columns and "position_angle" in contents.columns


def _is_freedoom(contents: Contents) -> bool:
    """Whether every scenario is one of ours or of the vizdoom package's, all of which are drawn with Freedoom's art."""
    from doom_env import find_scenario

    try:
        return _is_doom(contents) and all(find_scenario(name) for name in contents.scenarios)
    except BadInput:
        return False


def _text(contents: Contents, repo_id: str) -> str:
    facts = contents.facts
    seconds = contents.rows * facts["tics_per_row"] / facts["tics_per_second"]
    game = "Doom" if _is_doom(contents) else "a game"
    scenarios = ", ".join(f"`{name}`" for name in contents.scenarios)
    licence = FREEDOM if _is_freedoom(contents) else UNKNOWN.format(scenario=", ".join(contents.scenarios))
    return f"""# {repo_id.rpartition("/")[2]}

{contents.episodes:,} recorded episodes of {game} ({scenarios}), {contents.rows:,} frames with the action taken on each,
{seconds / 3600:.2f} hours of play: made to train a neural network that predicts the next frame from past frames and
actions, as in [GameNGen](https://arxiv.org/abs/2408.14837).

| split | episodes | frames | size |
|---|---|---|---|
{_split_rows(contents)}

## What a row is

One picture: {facts["tics_per_second"]:g} tics a second, one row every {facts["tics_per_row"]} tic(s); the agent
chose an action every {facts["tics_per_step"]} tic(s). **Alignment: `actions[t]` was chosen on seeing `frames[t]`
and leads to `frames[t+1]`.** Rows are in order of play, one file per episode, so the last row of an episode has no
next frame.

| column | type | meaning |
|---|---|---|
{_column_rows(contents)}

| action | name | buttons | keys | share of rows |
|---|---|---|---|---|
{_action_rows(contents)}

Every file's footer holds the same as JSON under `{METADATA_KEY.decode()}`: action table, times, size, scenario, seed.

## How it was recorded

By `load_model_generate_dataset.py` or `train_ppo_and_collect_data_parallel.py` of the neural game engine toolkit, a
fresh, seeded game per episode.

{_recording_lines(contents)}

## How to use it

```python
from datasets import load_dataset

episodes = load_dataset("{repo_id}", split="{next(iter(contents.splits))}")
episodes[0]["frames"].show(); print(episodes.features["actions"])
```

With the toolkit, from its folder, on this data set's id as on a local folder:

```sh
{_commands(facts, repo_id)}
```

## Licence

{licence}
"""


def _split_rows(contents: Contents) -> str:
    return "\n".join(
        f"| {name} | {split.episodes:,} | {split.rows:,} | {split.file_bytes / 1e6:,.1f} MB |"
        for name, split in contents.splits.items()
    )


def _column_rows(contents: Contents) -> str:
    types = {"binary": "image", "float": "float32"}
    return "\n".join(
        f"| `{name}` | {types.get(kind, kind)} | {COLUMNS.get(name, '').format(**contents.facts)} |"
        for name, kind in contents.columns.items()
    )


def _action_rows(contents: Contents) -> str:
    return "\n".join(
        f"| {row['id']} | {row['name']} | {' '.join(row['buttons'])} | {' '.join(row['keys'])} | "
        f"{contents.actions[row['id']] / contents.rows:.1%} |"
        for row in contents.facts["action_table"]
    )


def _recording_lines(contents: Contents) -> str:
    return "\n".join(
        f"- `{folder}`: "
        + ", ".join(f"{name} {_public(value)}" for name, value in identity.items() if value is not None)
        for folder, identity in contents.recordings.items()
    )


def _public(value: object) -> object:
    """A setting as others may see it: of a path its last part, not where it lies on this machine."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _commands(facts: dict[str, Any], repo_id: str) -> str:
    encode = f"python encode_images.py --dataset_basepath {repo_id} --save_dir_path latents"
    train = "python train_text_to_image.py --dataset_basepath latents --output_dir runs/world_model --preset small"
    stride = facts["tics_per_row"] if facts["tics_per_step"] == 1 else max(2, facts["tics_per_row"])
    return f"""python check_data.py {repo_id}
python finetune_vae.py --dataset_basepath {repo_id} --output_dir runs/autoencoder --train_from_scratch --preset small
{encode} --model_folder_or_id runs/autoencoder --frame_stride {stride}
{train} --frame_stride {stride}"""
