"""The page that runs a generator in the browser: its files, and the same images as in Python."""

import dataclasses
import errno
import io
import json
import os
import re
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
import torch

from drifting import runs
from drifting.errors import InputError
from drifting.exporting import export, web
from drifting.exporting.network import subject_of
from drifting.exporting.weights import rounded
from drifting.generators.mlp import MLP, DecoderMLP
from drifting.runs.share import ReleasedGenerator
from drifting.sampling import seeded_noise
from tests.support.browser import CHROMIUM, visit_served
from tests.support.later import import_later

onnx, _, _ = (import_later(name) for name in ("onnx", "onnxscript", "onnxruntime"))
in_browser = pytest.mark.skipif(CHROMIUM is None or shutil.which("npm") is None, reason="there is no Chromium or no npm")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """The npm package of ONNX Runtime Web."""
    folder = tmp_path_factory.mktemp("npm")
    try:
        return web._fetched(folder)
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def sampler():
    """A conditional and guided generator of small color images, with initial weights."""
    torch.manual_seed(0)
    sizes = {"noise_dim": 6, "width": 16, "depth": 2, "code_dim": 8, "decoder_width": 4, "gain": 3.0}
    return ReleasedGenerator(DecoderMLP(sample_shape=(3, 8, 8), num_classes=3, guided=True, **sizes))


@pytest.fixture(scope="module")
def page(sampler, runtime, tmp_path_factory):
    return export(sampler, "web", tmp_path_factory.mktemp("page") / "web", weights="int8", runtime=runtime).path


LOOK = """
const picture = () => document.getElementById("stage").toDataURL();
const press = (key) => document.getElementById("stage").dispatchEvent(new KeyboardEvent("keydown", { key }));
const rest = () => new Promise((resolve) => setTimeout(resolve, 150));
const told = () => document.getElementById("speed").textContent;
"""


@in_browser
def test_page_makes_the_images_of_python(page, sampler):
    noise, labels, scales = seeded_noise(range(6), (6,), 7), torch.tensor([2, 0, 1, 0, 2, 1]), torch.linspace(1, 2, 6)
    given = {"noise": noise.flatten().tolist(), "labels": labels.tolist(), "guidance_scale": scales.tolist()}
    script = f"""
    const found = await window.drifting.run({json.dumps(given)});
    {LOOK}
    const looks = [picture()];
    press("ArrowRight"); await rest(); looks.push(picture());
    press("ArrowLeft"); await rest(); looks.push(picture());
    document.querySelector("#labels button:nth-child(3)").click(); await rest(); looks.push(picture());
    const slider = document.getElementById("slider");
    slider.value = 4; slider.dispatchEvent(new Event("input")); await rest(); looks.push(picture());
    document.querySelector("#counts button").click(); await rest(); looks.push(picture());
    document.getElementById("sample").click(); await rest(); looks.push(picture());
    document.getElementById("play").click(); await rest(); looks.push(picture());
    document.getElementById("play").click();
    return {{
      values: Array.from(found.values), shape: found.shape, looks, told: told(),
      wide: document.documentElement.scrollWidth, window: innerWidth, isolated: crossOriginIsolated,
    }};
    """
    found = visit_served(page, script, width=500)
    with torch.no_grad():
        samples = rounded(sampler.generator, "int8")(noise, labels, scales)
    expected = ((samples + 1) * 127.5).round().clamp(0, 255).movedim(1, -1)
    values = np.array(found["values"]).reshape(found["shape"])
    assert values.shape == expected.shape
    assert np.abs(values - expected.numpy()).max() <= 1
    assert values.std() > 20
    start, right, back, *further = found["looks"]
    assert start == back
    assert len({start, right, *further}) == 2 + len(further)
    assert re.fullmatch(r"[\d.]+ ms per image", found["told"])
    assert found["wide"] <= found["window"]
    # Nothing that needs headers of the host.
    assert found["isolated"] is False


@in_browser
@pytest.mark.slow
def test_page_draws_points(toy_run, runtime, tmp_path):
    page = export(runs.load(toy_run), "web", tmp_path / "web", runtime=runtime).path
    noise = seeded_noise(range(5), (4,), 2)
    found = visit_served(
        page,
        f"""{LOOK}
        const found = await window.drifting.run({{ noise: {json.dumps(noise.flatten().tolist())} }});
        const before = picture(); press("ArrowDown"); await rest();
        const labels = document.getElementById("classes").hidden;
        return {{ values: Array.from(found.values), moved: picture() !== before, told: told(), labels }};
        """,
        dark=True,
    )
    expected = runs.load(toy_run).sample(5, seed=2)
    torch.testing.assert_close(torch.tensor(found["values"]).reshape(5, 2), expected, rtol=0, atol=1e-4)
    assert found["moved"]
    assert found["labels"]
    assert "ms per 1,000 points" in found["told"]


@in_browser
def test_folder_holds_what_the_page_needs_and_no_more(page):
    held = {path.relative_to(page).as_posix(): path.stat().st_size for path in page.rglob("*") if path.is_file()}
    assert held.keys() == {"index.html", "page.js", "model.onnx", "runtime/ort.js", "runtime/ort.wasm"}
    text = (page / "index.html").read_text() + (page / "page.js").read_text()
    assert "https:" not in text


def test_page_of_a_cdn_holds_no_runtime_and_no_end_of_a_script(tmp_path):
    sampler = ReleasedGenerator(MLP(noise_dim=3, sample_shape=(1, 4, 4), width=4, depth=1, num_classes=2))
    subject = dataclasses.replace(subject_of(sampler), class_names=("</script>", "b"), title="a<b")
    web.write_page(tmp_path / "page", subject, b"model", web.runtime_files(None, cdn=True))
    assert {path.name for path in (tmp_path / "page").iterdir()} == {"index.html", "page.js", "model.onnx"}
    text = (tmp_path / "page" / "index.html").read_text()
    facts = json.loads(re.search(r'id="facts">(.*?)</script>', text, re.S)[1])
    assert facts["labels"]["names"] == ["</script>", "b"]
    assert facts["runtime"]["script"] == f"https://cdn.jsdelivr.net/npm/{web.PACKAGE}/dist/ort.wasm.bundle.min.mjs"
    assert facts["noise"]["shape"] == [3]
    assert "<h1>a&lt;b" in text


@pytest.mark.parametrize(("size", "shown"), [(35_123, "(35 kB)"), (612_345, "(0.6 MB)"), (4_110_000, "(4.1 MB)")])
def test_page_says_the_size_of_small_models_too(size, shown):
    assert shown in web._about(subject_of(ReleasedGenerator(MLP(noise_dim=3, sample_shape=(2,), width=4, depth=1))), size)


def _cut_off(monkeypatch, tmp_path, npm: str | None) -> None:
    """Take npm away, or put a program in its place."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    if npm is not None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "npm").write_text(f"#!/bin/sh\n{npm}\n")
        (tmp_path / "bin" / "npm").chmod(0o755)


SAYS = {"npm is not installed": None, "registry failed": "echo 'request to registry failed' >&2; exit 1", "cannot fetch": "exit 0"}


@pytest.mark.parametrize("said", SAYS)
def test_without_npm_or_network_the_other_ways_are_named(toy_run, tmp_path, monkeypatch, command, said):
    _cut_off(monkeypatch, tmp_path, SAYS[said])
    monkeypatch.setattr("drifting.exporting.write.trace", lambda subject: pytest.fail("it began"))
    done = command("export", toy_run, "--to", "web", "--out", tmp_path / "web")
    assert done.status == 2
    assert said in done.err
    assert "--cdn" in done.err
    assert "--runtime" in done.err
    assert not (tmp_path / "web").exists()


@pytest.mark.parametrize(("options", "said"), [((), "npm is not installed"), (("--runtime", "nowhere"), "runtime is 'nowhere'")])
def test_missing_runtime_is_found_before_weights_are_compared(toy_run, tmp_path, monkeypatch, command, options, said):
    _cut_off(monkeypatch, tmp_path, None)
    monkeypatch.setattr("drifting.exporting.compare_weights", lambda run, weights: pytest.fail("it began"))
    done = command("export", toy_run, "--to", "web", "--weights", "int8", "--evaluate", "--out", tmp_path / "web", *options)
    assert done.status == 2
    assert said in done.err


def test_npm_that_takes_too_long_is_stopped(tmp_path, monkeypatch):
    _cut_off(monkeypatch, tmp_path, "exit 0")

    def late(*args, **options):
        raise subprocess.TimeoutExpired("npm", options["timeout"])

    monkeypatch.setattr(subprocess, "run", late)
    with pytest.raises(InputError, match="npm has not fetched"):
        web.runtime_files(None, cdn=False)


def _package(path, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Write an npm package with files of repeated bytes, or with entries of another kind, and return its bytes."""
    with tarfile.open(path, "w:gz") as archive:
        for name in web._NEEDED:
            entry, content = tarfile.TarInfo(f"package/{name}"), bytes(range(256)) * 40
            entry.type, entry.size = kind, len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(entry, io.BytesIO(content))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:5], "ended before"),
        (lambda data: data[:-9], "ended before"),
        (lambda data: data[:-8] + bytes(4) + data[-4:], "CRC check failed"),
    ],
)
def test_damaged_packages_of_the_runtime_are_refused(change, message, tmp_path):
    path = tmp_path / "runtime.tgz"
    data = _package(path)
    assert web.runtime_files(path, cdn=False).keys() == {"ort.js", "ort.wasm"}
    path.write_bytes(change(data))
    with pytest.raises(InputError, match=rf"runtime is '.*runtime.tgz', .*{message}.*: pass what 'npm pack"):
        web.runtime_files(path, cdn=False)


def test_packages_with_folders_in_place_of_files_are_refused(tmp_path):
    _package(tmp_path / "runtime.tgz", tarfile.DIRTYPE)
    with pytest.raises(InputError, match=r"dist/ort.wasm.bundle.min.mjs is not a file"):
        web.runtime_files(tmp_path / "runtime.tgz", cdn=False)


def test_samples_that_are_no_picture_are_refused(tmp_path):
    sampler = ReleasedGenerator(MLP(noise_dim=3, sample_shape=(4, 2, 2), width=4, depth=1), vae=object())
    with pytest.raises(InputError, match="latents"):
        export(sampler, "web", tmp_path / "web", cdn=True)
    assert not (tmp_path / "web").exists()


def test_full_disk_in_the_middle_leaves_the_page_that_was_there(toy_run, tmp_path, monkeypatch, command):
    page = tmp_path / "web"
    page.mkdir()
    (page / "index.html").write_text("before")
    monkeypatch.setattr("drifting.exporting.write.trace", lambda subject: None)
    monkeypatch.setattr("drifting.exporting.write.to_onnx", lambda program, subject: onnx.ModelProto())

    def full(name):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "page")

    monkeypatch.setattr(web, "_template", full)
    done = command("export", toy_run, "--to", "web", "--out", page, "--cdn", "--overwrite")
    assert done.status == 1
    assert "no space left" in done.err
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {"web", "web/index.html"}
    assert (page / "index.html").read_text() == "before"
