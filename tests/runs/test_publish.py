"""Runs that are shared: as folders with a model card, and as repositories of a stand-in for the Hugging Face Hub."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import drifting
from drifting import runs
from drifting.errors import InputError
from drifting.hub.repository import repository_id
from drifting.runs import publish
from tests.support.hub import HubStandIn, standing_in

FILES = ["config.json", "generator.safetensors", "metrics.json", "samples.png", "README.md"]
METRICS = {"num_samples": 9, "logistic_accuracy": 1.0, "logistic_accuracy_floor": 0.97, "within_class_distance": 0.5}
SETTINGS = ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE", "HF_HUB_CACHE", "HF_TOKEN_PATH")


@pytest.fixture
def evaluated(digits_run, tmp_path) -> Path:
    """A copy of the run of digits with figures."""
    folder = Path(shutil.copytree(digits_run, tmp_path / "evaluated" / "digits"))
    reference = "images /home/somebody/secret place/digits/test"
    (folder / "metrics.json").write_text(json.dumps({"reference": reference, **METRICS, "within_class_distance_floor": 2.25}))
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[HubStandIn]:
    with standing_in() as (state, address):
        places = (
            address,
            f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            str(tmp_path / "cache"),
            str(tmp_path / "token"),
        )
        for name, value in zip(SETTINGS, places, strict=True):
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setenv("HF_TOKEN", "hf_made_up")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield state


def _offline(monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")


def _published(folder: Path, hub: HubStandIn, name: str = "somebody/digits") -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.repositories[name] = files
    return files


def test_saved_run_samples_as_the_run_did_and_is_evaluated(evaluated, tmp_path, command):
    run = runs.load_run(evaluated)
    assert [path.name for path in run.save_pretrained(tmp_path / "shared")] == FILES
    assert {path.name for path in (tmp_path / "shared").iterdir()} == {*FILES}
    shared = drifting.load(tmp_path / "shared")
    assert torch.equal(shared.sample(20, seed=3), run.sample(20, seed=3))
    assert command("sample", tmp_path / "shared", "--out", tmp_path / "grid.png").status == 0
    assert command("evaluate", tmp_path / "shared").status == 0
    figures = json.loads((tmp_path / "shared" / "metrics.json").read_text())
    assert figures == run.evaluate()
    # What was evaluated anew is shared anew.
    assert [path.name for path in shared.save_pretrained(tmp_path / "again")] == FILES


def test_card_holds_the_figures_with_floors_and_metadata_that_the_hub_reads(evaluated, tmp_path):
    runs.load_run(evaluated).save_pretrained(tmp_path / "shared")
    card = ModelCard.load(tmp_path / "shared" / "README.md")
    assert (card.data.library_name, card.data.license) == ("drifting", "unknown")
    assert card.data.pipeline_tag == "unconditional-image-generation"
    found = {result.metric_type: result for result in card.data.eval_results}
    assert found["logistic_accuracy"].metric_value == 1
    assert found["logistic_accuracy"].metric_name == "logistic accuracy (of real data: 0.97)"
    assert "num_samples" not in found
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.text.splitlines() if line.startswith("|")]
    place = [row[0] for row in rows].index("logistic accuracy")
    assert rows[place] == ["logistic accuracy", "1", "0.97", "more"]
    assert rows[place + 1] == ["within class distance", "0.5", "2.25", "as real"]
    assert "](samples.png)" in card.text
    assert "MIT" in card.text
    assert "to be filled in" in card.text


def test_nothing_tells_of_places_on_this_machine(points_run, evaluated, tmp_path):
    for number, folder in enumerate((points_run, evaluated)):
        for path in runs.load_run(folder).save_pretrained(tmp_path / str(number)):
            if path.suffix in (".json", ".md"):
                assert not re.search(r"(/tmp|/home|somebody|pytest)", path.read_text()), path
    assert json.loads((tmp_path / "0" / "config.json").read_text())["data"]["path"] == "own.npy"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("/home/a b/data", "data"),
        ("C:\\Users\\a b\\data", "data"),
        ("statistics /srv/x/y.npz, of 3", "statistics y.npz, of 3"),
        ("stabilityai/sd-vae-ft-mse", "stabilityai/sd-vae-ft-mse"),
        ("https://arxiv.org/abs/1", "https://arxiv.org/abs/1"),
        ("images mnist/test", "images mnist/test"),
    ],
)
def test_paths_become_their_last_names(text, kept):
    assert publish._without_places({"a": [text], "b": 1.5, "c": None}) == {"a": [kept], "b": 1.5, "c": None}
    assert publish._without_places({"data": {"class_names": [text]}}) == {"data": {"class_names": [text]}}


@pytest.mark.parametrize("kind", ["toy_run", "digits_run", "points_run", "images_run"])
def test_lines_of_use_in_the_card_work(kind, request, tmp_path, monkeypatch, capsys):
    runs.load_run(request.getfixturevalue(kind)).save_pretrained(tmp_path / "shared")
    monkeypatch.chdir(tmp_path)
    text = (tmp_path / "shared" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(code.splitlines()) == 4
    exec(code, {})
    shape = re.search(r"\[(16, .*?)\]", code)[1]
    assert f"torch.Size([{shape}])" in capsys.readouterr().out
    assert "Not evaluated yet" in text


def test_half_precision_takes_half_the_space_and_gives_nearly_the_same_samples(digits_run, tmp_path):
    run = runs.load_run(digits_run)
    run.save_pretrained(tmp_path / "half", half=True)
    sizes = [(folder / "generator.safetensors").stat().st_size for folder in (tmp_path / "half", digits_run)]
    assert sizes[0] < 0.75 * sizes[1]  # the header of a tiny network is as large as its weights
    assert {value.dtype for value in load_file(tmp_path / "half" / "generator.safetensors").values()} == {torch.float16}
    half = drifting.load(tmp_path / "half")
    assert {value.dtype for value in half.generator.parameters()} == {torch.float32}
    assert int((half.sample(50).int() - run.sample(50).int()).abs().max()) <= 2
    assert "stored in float16" in (tmp_path / "half" / "README.md").read_text()
    with torch.no_grad():
        next(run.generator.parameters()).fill_(1e5)
    with pytest.raises(InputError, match=r"in float16.* not finite"):
        run.save_pretrained(tmp_path / "too large", half=True)
    assert not (tmp_path / "too large").exists()


def test_folder_is_replaced_only_on_request_and_holds_nothing_else(toy_copy, tmp_path, command):
    run, folder = runs.load_run(toy_copy), tmp_path / "shared"
    run.save_pretrained(folder)
    with pytest.raises(InputError, match=r"folder is .*holds a shared run: pass --overwrite"):
        run.save_pretrained(folder)
    before = (folder / "README.md").stat().st_ino
    assert command("share", toy_copy, "--to", folder, "--overwrite").out.split() == [
        str(folder / name) for name in FILES if name != "metrics.json"
    ]
    assert (folder / "README.md").stat().st_ino != before
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"folder is .*holds other files, such as 'thesis\.txt'"):
        run.save_pretrained(folder, overwrite=True)
    with pytest.raises(InputError, match=r"folder is .*the run itself"):
        run.save_pretrained(toy_copy, overwrite=True)
    (folder / "thesis.txt").unlink()
    (folder / ".git").mkdir()
    with pytest.raises(InputError, match=r"folder is .*holds other files, such as '\.git'"):
        run.save_pretrained(folder, overwrite=True)
    with pytest.raises(InputError, match=r"folder is .*a file"):
        run.save_pretrained(folder / "README.md")


def test_failing_in_the_middle_leaves_nothing_behind(toy_run, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publish, "save_tensors", full)
    with pytest.raises(OSError, match="No space"):
        runs.load_run(toy_run).save_pretrained(tmp_path / "shared")
    assert list(tmp_path.iterdir()) == []


def test_uploaded_run_is_loaded_by_its_name_and_without_a_network_again(evaluated, hub, here, command, monkeypatch):
    run = runs.load_run(evaluated)
    shown = command("share", evaluated, "--to", "hub:somebody/my-digits", "--private")
    assert (shown.status, shown.out.split()[-1].rpartition(":")[2].partition("/")[2]) == (0, "somebody/my-digits")
    assert hub.private == {"somebody/my-digits"}
    assert hub.repositories["somebody/my-digits"].keys() == {*FILES}
    assert "drifting.load('somebody/my-digits')" in hub.repositories["somebody/my-digits"]["README.md"].decode()
    hub.repositories["somebody/my-digits"]["notes.txt"] = b"not downloaded"
    for name in ("somebody/my-digits", "hub:somebody/my-digits"):
        assert torch.equal(drifting.load(name).sample(8), run.sample(8))
    assert "GET /somebody/my-digits/resolve/main/notes.txt" not in " ".join(hub.requests)
    assert command("sample", "somebody/my-digits", "--out", "grid.png").status == 0
    _offline(monkeypatch)
    assert torch.equal(drifting.load("somebody/my-digits").sample(8), run.sample(8))


def _pickled(files: dict[str, bytes], hub: HubStandIn) -> None:
    files["pytorch_model.bin"] = b""


def _weightless(files: dict[str, bytes], hub: HubStandIn) -> None:
    del files["generator.safetensors"]


def _strange(files: dict[str, bytes], hub: HubStandIn) -> None:
    files["config.json"] = json.dumps({"architectures": ["ViTModel"], "hidden_size": 8}).encode()


def _huge(files: dict[str, bytes], hub: HubStandIn) -> None:
    hub.sizes["somebody/digits", "generator.safetensors"] = 5 * 10**9


def _misshapen(files: dict[str, bytes], hub: HubStandIn) -> None:
    config = json.loads(files["config.json"])
    config["generator"]["width"] = 17
    files["config.json"] = json.dumps(config).encode()


def _vast(files: dict[str, bytes], hub: HubStandIn) -> None:
    config = json.loads(files["config.json"])
    config["generator"]["width"] = 10**9
    files["config.json"] = json.dumps(config).encode()


def _cut(files: dict[str, bytes], hub: HubStandIn) -> None:
    files["generator.safetensors"] = files["generator.safetensors"][:100]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_pickled, r"'somebody/digits', a repository with 'pytorch_model\.bin', which can run code"),
        (_weightless, r"'somebody/digits', a repository without generator\.safetensors"),
        (_strange, "has no version: name the folder of a run made by drifting"),
        (_huge, r"'generator\.safetensors' of 5,000 MB, more than 4,000 MB"),
        (_misshapen, "do not fit the configuration"),
        (_vast, "do not fit the configuration|describes no network"),
        (_cut, "corrupted or truncated .*: delete it and resume, or download it again"),
    ],
)
def test_strange_repository_is_refused_in_a_sentence(
    spoil: Callable[[dict[str, bytes], HubStandIn], None], words, digits_run, tmp_path, hub
):
    runs.load_run(digits_run).save_pretrained(tmp_path / "shared")
    spoil(_published(tmp_path / "shared", hub), hub)
    with pytest.raises(InputError, match=words):
        drifting.load("hub:somebody/digits")
    if spoil in (_pickled, _weightless, _huge):
        assert not [request for request in hub.requests if "/resolve/" in request]


def test_missing_repository_and_missing_network_say_what_to_do(here, hub, monkeypatch, command):
    shown = command("sample", "somebody/nothing")
    assert shown.status == 2
    assert "no folder here and no repository that you may read" in shown.err
    _offline(monkeypatch)
    with pytest.raises(InputError, match=r"the Hub cannot be reached .*: check the network, or name the folder"):
        drifting.load("somebody/nothing")


def test_upload_without_login_network_or_name_says_what_to_do(digits_run, hub, monkeypatch):
    run = runs.load_run(digits_run)
    with pytest.raises(InputError, match="repository is 'digits': name a repository as owner/name"):
        run.push_to_hub("digits")
    hub.refused = True
    with pytest.raises(InputError, match=r"repository is 'somebody/x'.*: log in with"):
        run.push_to_hub("somebody/x")
    _offline(monkeypatch)
    with pytest.raises(InputError, match=r"repository is 'somebody/x'.*: check the network, or save a folder"):
        run.push_to_hub("somebody/x")


def test_folders_go_before_repositories(here):
    assert repository_id("somebody/digits") == "somebody/digits"
    for name in ("runs/digits", "digits", "a/b/c", "./a/b", "/a/b", "hub:latent_L_sota", "../b"):
        assert repository_id(name) is None
    (here / "somebody").mkdir()
    assert repository_id("somebody/digits") is None
    assert repository_id("hub:somebody/digits") == "somebody/digits"


def test_private_belongs_to_a_repository(digits_run, tmp_path, command):
    shown = command("share", digits_run, "--to", tmp_path / "shared", "--private")
    assert shown.status == 2
    assert "private is given, but to is" in shown.err
    assert not (tmp_path / "shared").exists()


def test_weights_that_are_no_tensors_by_name_are_refused(digits_run, tmp_path):
    runs.load_run(digits_run).save_pretrained(tmp_path / "shared")
    save_file({"anything": torch.zeros(3)}, tmp_path / "shared" / "generator.safetensors")
    with pytest.raises(InputError, match="do not fit the configuration"):
        drifting.load(tmp_path / "shared")
