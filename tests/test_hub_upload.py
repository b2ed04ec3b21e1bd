"""Promises of --push_to_hub: what was trained lies on the Hub as it lies here, with a card that says what was measured.

Through the real command lines and the real client, against a Hub on this machine."""

import argparse
import errno
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import console
import hub_repository
import pytest
from command import REPOSITORY, environment, launch, run_script, succeed
from hub_server import READER, WRITER, local_hub
from huggingface_hub import ModelCard
from small_runs import (
    STEPS,
    autoencoder_words,
    call,
    changed_words,
    episodes,
    logged,
    random_autoencoder,
    tree,
    world_model_run,
    world_model_words,
)
from tiny_models import KL_GEOMETRY, kl_autoencoder, saved

import hub_upload
from command_line import BadInput
from metrics import ROWS
from model_card import Training, world_model_card
from presets import STABLE_DIFFUSION

WORLD_MODEL, AUTOENCODER = "train_text_to_image.py", "finetune_vae.py"
PUSH = ("--push_to_hub", "--hub_model_id")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pytest's own folder: the finished runs of small_runs.py are shared with other test files."""
    return tmp_path_factory.getbasetemp()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(extra: Mapping[str, str], *words: object) -> str:
    """The one line by which a script says no."""
    done = run_script(*words, extra=extra)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr[-3000:]
    return done.stderr.strip()


def shown(line: Mapping[str, float], prefix: str) -> dict[str, list[str]]:
    """A line of metrics.jsonl as a card's table has it."""
    numbers = {name: (line[f"{prefix}{name}_psnr_db"], line[f"{prefix}{name}_detail"]) for name in ROWS}
    return {name: [f"{psnr:.2f} dB", f"{detail:.2f}"] for name, (psnr, detail) in numbers.items()}


def table_after(text: str, heading: str) -> dict[str, list[str]]:
    """{first cell: other cells} of the first table after a heading."""
    rows = re.search(r"(?:^\|.*\n)+", text[text.index(heading) :], re.MULTILINE).group().splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {first.strip("`"): others for first, *others in cells}


@pytest.mark.slow
def test_a_finished_world_model_is_pushed_by_its_own_command_and_dreams_the_same_from_the_hub(
    base: Path, tmp_path: Path
) -> None:
    done, run_folder = world_model_run(base), tmp_path / "run"
    shutil.copytree(done.folder, run_folder)
    folder, words = run_folder / "world_model", changed_words(done.words, output_dir=run_folder)
    with local_hub(tmp_path / "hub") as hub:
        online = hub.environment(tmp_path / "home")
        said = succeed(WORLD_MODEL, *words, *PUSH, "owner/dream", extra=online)
        assert said.splitlines()[-1] == f"uploaded {folder} to {hub.url}/owner/dream (private)"
        assert len(hub.commits) == 1 and hub.visibility == {"models/owner/dream": "private"}
        there, film = contents(hub.repository("owner/dream")), run_folder / f"samples/step_{STEPS:06d}.gif"
        assert there == {
            **contents(done.folder / "world_model"),
            "README.md": there["README.md"],
            "rollout.gif": film.read_bytes(),
        }
        assert not any(b"exp_avg" in content or "optimizer" in name for name, content in there.items())
        assert not any(str(base).encode() in content for content in there.values()), "a path of this machine"
        rolled = ("--dataset_basepath", episodes(base), "--start_from_pixels", "--episode_length", 4, "--device", "cpu")
        hub_id = ("--unet_model_folder", "owner/dream", "--out", tmp_path / "from_hub")
        succeed("run_autoregressive.py", *rolled, *hub_id, extra=online)
    call("run_autoregressive.py", *rolled, "--unet_model_folder", done.folder, "--out", tmp_path / "from_disk")
    films = [(tmp_path / source / "rollout_0.gif").read_bytes() for source in ("from_hub", "from_disk")]
    assert films[0] == films[1]
    card = ModelCard(there["README.md"].decode())
    assert (card.data.license, card.data.base_model, card.data.datasets) == ("mit", None, None)
    line = logged(run_folder)[-1]
    assert table_after(card.text, "One step ahead") == shown(line, "")
    assert table_after(card.text, f"{line['rollout_frames']:.0f} frames on its own") == shown(line, "rollout_")
    told = table_after(card.text, "How it was trained")
    assert told["steps"] == [str(STEPS)] and told["data"] == ["`random_latents`"]
    assert table_after(card.text, "## Actions")["2"] == ["RIGHT", "d", "KeyD"]
    assert "python play.py --model_folder owner/dream" in card.text and "(rollout.gif)" in card.text


@pytest.mark.slow
def test_an_upload_that_fails_at_the_end_keeps_the_run_and_the_same_command_pushes_it(
    base: Path, tmp_path: Path
) -> None:
    words = changed_words(autoencoder_words(base, tmp_path / "run"), model_folder_or_id=None, max_train_steps=2)
    words = (*words, "--train_from_scratch", "--preset", "smoke", *PUSH, "club/eyes", "--hub_public")
    with local_hub(tmp_path / "hub") as hub:
        online, hub.down_for = hub.environment(tmp_path / "home"), "validate-yaml"  # an upload's first question
        done = run_script(AUTOENCODER, *words, extra=online)
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 2 and last.startswith(
            f"{AUTOENCODER}: uploading to club/eyes: the Hub cannot be reached"
        )
        assert last.endswith(f"{tmp_path / 'run/autoencoder'} is finished and kept, the same command again uploads it")
        assert hub.commits == [] and (tmp_path / "run/checkpoint-2").is_dir()
        kept, hub.down_for = tree(tmp_path / "run/checkpoint-2"), None
        assert "(public)" in succeed(AUTOENCODER, *words, extra=online).splitlines()[-1]
        assert tree(tmp_path / "run/checkpoint-2") == kept
        assert hub.visibility == {"models/club/eyes": "public"}
        there = contents(hub.repository("club/eyes"))
        assert there == contents(tmp_path / "run/autoencoder") and "diffusion_pytorch_model.safetensors" in there
        card = ModelCard(there["README.md"].decode())
        for name in ("frames.gif", "frames.png"):
            assert there[name] == (tmp_path / f"run/samples/step_000002{name[-4:]}").read_bytes()
            assert f"({name})" in card.text
        assert card.data.license == "mit" and card.data.library_name == "diffusers"
        row = table_after(card.text, "How good it is")["ceiling"]
        assert row[0] == f"{logged(tmp_path / 'run')[-1]['ceiling_psnr_db']:.2f} dB"


def test_what_keeps_a_model_from_the_hub_is_said_before_training_starts(base: Path, tmp_path: Path) -> None:
    words = (WORLD_MODEL, *world_model_words(base, tmp_path / "run"))
    eyes = (AUTOENCODER, *autoencoder_words(base, tmp_path / "run"))
    with local_hub(tmp_path / "hub") as hub:
        (hub.root / "models/owner/shown").mkdir(parents=True)  # public
        for token, flags, said in (
            (None, (*PUSH, "owner/a"), "there is no token for the Hub; log in with `hf auth login`"),
            ("hf_wrong", (*PUSH, "owner/a"), "the Hub does not know the token"),
            (READER, (*PUSH, "owner/a"), "the token may not write there"),
            (WRITER, (*PUSH, "alien/a"), "the token may not write there"),
            (WRITER, (*PUSH, "owner/shown"), "is there already and public; add --hub_public, or name another"),
            (WRITER, (*PUSH, "a"), "--hub_model_id a: give OWNER/NAME"),
            (WRITER, ("--push_to_hub",), "add --hub_model_id OWNER/NAME"),
            (WRITER, ("--hub_public",), "nothing is uploaded without --push_to_hub"),
        ):
            assert said in refused(hub.environment(tmp_path / "home", token), *words, *flags)
        nobody = hub.environment(tmp_path / "home", token=None)
        assert "there is no token for the Hub" in refused(nobody, *eyes, *PUSH, "owner/a")
        offline = {**hub.environment(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
        assert "HF_HUB_OFFLINE is set" in refused(offline, *words, *PUSH, "owner/a")
        assert hub.commits == [] and not (hub.root / "models/owner/a").exists()
    gone = refused(hub.environment(tmp_path / "home"), *words, *PUSH, "owner/a")
    assert "--hub_model_id owner/a: the Hub cannot be reached (ConnectError" in gone
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_push_once_and_a_base_on_the_hub_passes_its_licence_on(base: Path, tmp_path: Path) -> None:
    words = changed_words(autoencoder_words(base, tmp_path / "run"), model_folder_or_id="club/base", max_train_steps=1)
    preset = tmp_path / "kl.json"
    geometry = {key: value for key, value in KL_GEOMETRY.facts().items() if key != "preset"}
    preset.write_text(json.dumps({"base": "smoke", "latent_width": 8, "latent_height": 8, **geometry}))
    with local_hub(tmp_path / "hub") as hub:
        theirs = saved(kl_autoencoder(), hub.root / "models/club/base")
        (theirs / "README.md").write_text("---\nlicense: other\nlicense_name: theirs\n---\n")
        online = hub.environment(tmp_path / "home")
        done = launch(AUTOENCODER, *words, "--preset", preset, *PUSH, "owner/tuned", extra=online)
        assert done.returncode == 0, done.stderr[-3000:]
        asked = [line for line in hub.asked if "whoami" in line or "commit" in line]
        assert asked == ["GET api/whoami-v2", "POST api/models/owner/tuned/commit/main"]
        card = ModelCard((hub.repository("owner/tuned") / "README.md").read_text())
    assert card.data.base_model == ["club/base"] and card.data.license_name == "theirs"
    assert "Derived from `club/base`" in card.text


def test_weights_from_others_stay_under_their_licence_and_an_unknown_one_is_left_to_the_user(
    base: Path, tmp_path: Path
) -> None:
    run_folder, theirs = tmp_path / "run", tmp_path / "their_pipeline"
    shutil.copytree(world_model_run(base).folder, run_folder)
    vae = run_folder / "world_model/vae/config.json"
    vae.write_text(vae.read_text().replace("AutoencoderTiny", "AutoencoderKL"))
    (theirs / "unet").mkdir(parents=True)
    (theirs / "vae").mkdir()

    def card_of(unet: str | Path | None, autoencoder: str | Path) -> ModelCard:
        training = Training("club/play", 3, 1, "9 windows", {}, base=unet, autoencoder=autoencoder)
        return ModelCard(world_model_card(run_folder, "owner/dream", training)[0])

    card = card_of(STABLE_DIFFUSION, STABLE_DIFFUSION)
    assert card.data.license == "creativeml-openrail-m" and card.data.base_model == [STABLE_DIFFUSION]
    assert card.data.datasets == ["club/play"] and "use restrictions" in card.text
    card = card_of(theirs / "unet", theirs)  # nothing says what it may be used for
    assert card.data.license == "unknown" and card.data.base_model is None and str(tmp_path) not in card.text
    assert "Derived from `unet` and `their_pipeline`, whose licence is not known here" in card.text
    assert "MIT" not in card.text and "use restrictions" not in card.text
    card = card_of(STABLE_DIFFUSION, theirs)  # the stricter one counts
    assert card.data.license == "creativeml-openrail-m" and "`their_pipeline`, whose licence is not known" in card.text
    (theirs / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    card = card_of(theirs / "unet", theirs / "vae")
    assert card.data.license == "apache-2.0" and "whose licence applies to these weights: apache-2.0" in card.text
    card = card_of("club/unknown", STABLE_DIFFUSION)
    assert card.data.license == "creativeml-openrail-m" and card.data.base_model == ["club/unknown", STABLE_DIFFUSION]


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize(
    ("error", "cause", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/here/x"), None, "/here/x (No space left on device); make"),
        (
            RuntimeError("while uploading"),
            PermissionError(errno.EACCES, "Permission denied", "/here/x"),
            "/here/x (Per",
        ),
        (ConnectionResetError(errno.ECONNRESET, "reset"), None, "the Hub cannot be reached (ConnectionResetError"),
        (RuntimeError("while uploading"), TimeoutError("slow"), "the Hub cannot be reached (TimeoutError: slow)"),
        (RuntimeError("storage refused"), None, "it failed (RuntimeError: storage refused)"),
    ],
)
def test_what_fails_on_this_machine_is_not_said_to_be_the_hub(
    stage: int, error: Exception, cause: Exception | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error from cause

    (tmp_path / "README.md").write_text("mine")
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", fail)
    monkeypatch.setattr("huggingface_hub.HfApi.hf_hub_download", fail)
    args = argparse.Namespace(hub_model_id="owner/a", hub_public=False)
    with pytest.raises((BadInput, console.BadInput)) as refused:
        if stage == 1:
            hub_repository.upload(tmp_path, "owner/a", repo_type="model", message="a test")
        else:
            hub_upload.push(args, tmp_path, "", {})
    assert str(refused.value).startswith(f"uploading to owner/a: {said}")


def test_a_download_that_this_machine_cannot_keep_is_not_said_to_be_the_hub(base: Path, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the cache should be")
    with local_hub(tmp_path / "hub") as hub:
        shutil.copytree(random_autoencoder(base), hub.root / "models/owner/eyes")
        online = hub.environment(tmp_path / "home")
        words = changed_words(autoencoder_words(base, tmp_path / "run"), model_folder_or_id="owner/eyes")
        done = run_script(AUTOENCODER, *words, extra=online)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]  # before it the client's own warnings
    assert last.startswith(f"{AUTOENCODER}: {tmp_path / 'home'}") and "Not a directory; see to it" in last


PUSHER = """
import argparse, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import hub_upload
args = argparse.Namespace(hub_model_id="owner/dream", hub_public=True)
hub_upload.push(args, Path(sys.argv[2]), Path(sys.argv[3]).read_text(), {})
"""


def test_a_card_that_a_person_edited_stays_on_the_hub_and_in_the_folder(base: Path, tmp_path: Path) -> None:
    """In processes of their own, since the client reads its settings when imported."""
    folder, new, training = tmp_path / "model", tmp_path / "new.md", Training("play", 3, 1, "9 windows", {})
    first, second, third = (
        world_model_card(world_model_run(base).folder, f"owner/{name}", training)[0] for name in ("a", "b", "c")
    )
    folder.mkdir()
    with local_hub(tmp_path / "hub") as hub:
        there = hub.repository("owner/dream") / "README.md"
        there.parent.mkdir(parents=True)

        def pushed(card: str) -> str:
            new.write_text(card)
            words = [sys.executable, "-c", PUSHER, str(REPOSITORY), str(folder), str(new)]
            online = environment(hub.environment(tmp_path / "home"))
            done = subprocess.run(words, env=online, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr[-3000:]
            return done.stdout

        assert "edited" not in pushed(first) and there.read_text() == first
        assert "edited" not in pushed(second) and there.read_text() == second  # what a script wrote is written anew
        edited = second.replace("# b", "# My own words")
        there.write_text(edited)
        (folder / "weights.safetensors").write_bytes(b"new")
        said = pushed(third)
        assert said.startswith(f"owner/dream: its README.md was edited by hand and stays; the new one is {folder}/READ")
        assert there.read_text() == edited and (there.parent / "weights.safetensors").read_bytes() == b"new"
        (folder / "README.md").write_text("words of whoever uploads it")
        assert "edited" not in pushed(third) and there.read_text() == "words of whoever uploads it"
