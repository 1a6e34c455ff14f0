"""Asset cards: those of the public models, cards of one's own for every format, and machines without a connection."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import one_thread  # noqa: F401 - a fixture
from fairseq2.assets import AssetCard, AssetStore
from fairseq2.runtime.dependency import get_dependency_resolver
from fairseq2.utils.uri import Uri
from golden import FAIRSEQ
from processes import command_server
from ruamel.yaml import YAML

from hubert_plugin import load_hubert, load_hubert_ctc
from hubert_plugin.errors import CheckpointError
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.hubert_ctc.factory import create_hubert_ctc_model
from hubert_plugin.models.interop.cards import card_config, fetch_uri, find_card, is_hub_id, list_cards
from hubert_plugin.models.interop.keys import AnyConfig

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = FAIRSEQ.parent

CARDS = Path(__file__).parents[1] / "assets/cards"


def read_cards(kind: str) -> list[dict[str, Any]]:
    files = sorted((CARDS / kind).glob("*.yaml"))

    return [card for file in files for card in YAML(typ="safe").load_all(file)]


PUBLIC = {card["name"]: card for card in read_cards("models")}


def test_all_public_models_have_cards() -> None:
    for size in ("base_ls960", "large_ll60k", "xlarge_ll60k"):
        assert {f"hubert_{size}{s}" for s in ("", "_torchaudio", "_hf")} <= PUBLIC.keys()

    for size in ("large", "xlarge"):
        assert {f"hubert_{size}_ll60k_ft_ls960{s}" for s in ("", "_torchaudio", "_hf")} <= PUBLIC.keys()

    assert {"mhubert_147", "chinese_hubert_base", "japanese_hubert_base", "ms_hubert_base_ls960"} <= PUBLIC.keys()

    assert PUBLIC.keys() <= set(list_cards())


COUNTED: dict[str, int] = {}


def count_parameters(config: AnyConfig) -> int:
    """Build the model on the meta device, once for each architecture."""
    key = repr(config)

    if key not in COUNTED:
        with torch.device("meta"):
            is_ctc = isinstance(config, HubertCtcConfig)

            model: torch.nn.Module = create_hubert_ctc_model(config) if is_ctc else create_hubert_model(config)

        COUNTED[key] = sum(p.numel() for p in model.parameters())

    return COUNTED[key]


@pytest.mark.parametrize("name", list(PUBLIC))
def test_public_card_describes_a_model_that_can_be_built(name: str) -> None:
    """Parameter counts are those of the papers' models (FACTS 1.3), mask embedding included."""
    card = find_card(name)

    assert card is not None

    config = card_config(card)

    assert config is not None

    encoder = config.encoder if isinstance(config, HubertCtcConfig) else config

    assert isinstance(encoder, HubertConfig)

    extra = 0

    if isinstance(config, HubertCtcConfig):
        assert not config.validate().has_error()

        extra = config.vocab_size * (encoder.model_dim + 1)

    counts = {768: 94_371_712, 1024: 315_435_136, 1280: 962_493_824}

    assert count_parameters(config) - extra == counts[encoder.model_dim]

    entry = PUBLIC[name]

    # What a reader sees and what the model does are one.
    assert (entry["waveform_normalization"] != "none") == encoder.normalize_audio == (encoder.conv_norm == "layer")
    assert entry["sample_rate"] == encoder.sample_rate == 16_000
    assert entry["layer_convention"].startswith("output of block L, 1-based")
    assert entry["license"] and entry["origin"].startswith("https://")
    assert entry["checkpoint"].startswith("https://")


def test_released_unit_model_has_a_card() -> None:
    (card,) = read_cards("units")

    assert card["name"] == "hubert_base_ls960_l9_km500"
    assert card["units"]["features"] == {"model": "hubert_base_ls960", "layer": 9}
    assert card["units"]["size"] == 500 and card["units"]["trust_pickle_required"]
    assert card["license"]


def test_hub_ids_are_told_from_paths() -> None:
    assert all(map(is_hub_id, ("facebook/hubert-base-ls960", "hg://utter-project/mHuBERT-147")))
    assert not any(map(is_hub_id, ("hubert_base", "./runs/a", "/abs/path", "a/b/c", "runs/", "https://x/y")))


USE_CARDS = """
import sys
import hubert_plugin
from hubert_plugin import load_hubert, load_hubert_ctc
from hubert_plugin.errors import CheckpointError, HubertError
from hubert_plugin.models.hubert.hub import get_hubert_model_hub
from hubert_plugin.models.hubert_ctc.hub import get_hubert_ctc_model_hub

def attempt(name, load):
    try:
        model = load()
    except HubertError as ex:
        print(name, "REFUSED", str(ex).replace(chr(10), " "))
    except Exception as ex:
        print(name, "FAILED", type(ex).__name__)
    else:
        total = sum(float(p.double().abs().sum()) for p in model.parameters())
        heads = [h.size for h in getattr(model.config, "heads", [])]
        print(name, "LOADED", type(model).__name__, f"{total:.6f}", heads)

for name in sys.argv[1:] or %NAMES%:
    attempt(name, lambda: load_hubert(name))
    attempt(name + "/ctc", lambda: load_hubert_ctc(name))
    hub = get_hubert_ctc_model_hub if name.startswith("ctc") else get_hubert_model_hub
    if name != "bare_card":  # fairseq2 would build a whole base model
        attempt(name + "/fairseq2", lambda: hub().load_model(name))
"""


def run_cards(folder: Path, cards: list[dict[str, Any]], names: list[str] | None = None, **env: str) -> dict[str, str]:
    """Load cards in a process of its own, by our functions and by fairseq2's; return what came of each."""
    (folder / "cards").mkdir(exist_ok=True)
    (folder / "cards/mine.yaml").write_text("\n---\n".join(json.dumps(c) for c in cards))

    run = command_server().run(
        code=USE_CARDS.replace("%NAMES%", repr(names or [c["name"] for c in cards])),
        env={
            "FAIRSEQ2_USER_ASSET_DIR": str(folder / "cards"),
            "FAIRSEQ2_CACHE_DIR": str(folder / "cache"),
            **env,
        },
    )

    assert run.poll() == 0, run.raw[-3000:]

    lines = [line for line in run.raw.splitlines() if re.match(r"\S+ (LOADED|REFUSED|FAILED) ", line)]

    return {line.partition(" ")[0]: line.partition(" ")[2] for line in lines}


TINY = {
    "model_dim": 32,
    "num_layers": 3,
    "num_heads": 4,
    "ffn_dim": 64,
    "conv_layers": [[16, 10, 5], *[[16, 3, 2]] * 4, *[[16, 2, 2]] * 2],
    "pos_conv_kernel": 16,
    "pos_conv_groups": 4,
    "final_dim": 16,
}


def test_card_of_ones_own_may_point_at_any_format(tmp_path: Path) -> None:
    """A file or folder beside the card, by a relative path; the same parameters each time, in three formats."""
    (tmp_path / "cards").mkdir()

    for file in ("fairseq/tiny_post.pt", "fairseq/tiny_ctc.pt", "torchaudio/from_fairseq_tiny_post.pth"):
        shutil.copy(DATA / file, tmp_path / "cards")

    for folder in ("hf_group", "hf_group_ctc"):
        # Not beside the cards: fairseq2 would take other files for cards.
        shutil.copytree(DATA / "transformers" / folder, tmp_path / folder)

    def card(name: str, checkpoint: str, *, family: str = "hubert", described: bool = True) -> dict[str, Any]:
        config = {"encoder": TINY, "vocab_size": 13} if family == "hubert_ctc" else TINY

        described_by = {"model_arch": "base", "model_config_overrides": config} if described else {}

        return {"name": name, "model_family": family, "checkpoint": checkpoint, **described_by}

    results = run_cards(
        tmp_path,
        [
            card("fairseq_card", "tiny_post.pt"),
            card("bare_card", "tiny_post.pt", described=False),
            card("ta_card", "from_fairseq_tiny_post.pth"),
            card("hf_card", (tmp_path / "hf_group").as_uri()),
            card("ctc_card", "tiny_ctc.pt", family="hubert_ctc"),
            card("ctc_hf_card", (tmp_path / "hf_group_ctc").as_uri(), family="hubert_ctc"),
            card("wrong_size_card", "tiny_post.pt") | {"model_config_overrides": {**TINY, "num_layers": 2}},
            card("other_arch_card", "tiny_post.pt") | {"model_arch": "tiny", "model_config_overrides": {}},
        ],
    )

    # Heads come from the file where the card names none; fairseq2's way builds the model from the card alone.
    assert results["fairseq_card"].startswith("LOADED HubertModel") and results["fairseq_card"].endswith("[20]")
    assert results["bare_card"] == results["fairseq_card"]
    assert results["fairseq_card/fairseq2"].startswith("LOADED HubertModel")
    assert results["fairseq_card/fairseq2"].endswith("[]")
    assert "was not fine-tuned for recognition" in results["fairseq_card/ctc"]

    for name in ("ta_card", "hf_card"):
        assert results[name].startswith("LOADED HubertModel") and results[name].endswith("[]"), results[name]
        assert results[f"{name}/fairseq2"] == results[name], results[f"{name}/fairseq2"]

    for name in ("ctc_card", "ctc_hf_card"):
        assert results[f"{name}/ctc"].startswith("LOADED HubertCtcModel"), results[f"{name}/ctc"]
        assert results[f"{name}/fairseq2"] == results[f"{name}/ctc"], results[f"{name}/fairseq2"]
        assert results[name].startswith("LOADED HubertModel"), results[name]

    for suffix in ("", "/fairseq2"):
        assert "num_layers: expected 2, found 3" in results[f"wrong_size_card{suffix}"]
        assert "one of 4 layers of 256" in results[f"other_arch_card{suffix}"]


def test_checkpoint_is_found_whatever_is_in_its_path(tmp_path: Path) -> None:
    """Addresses quote blanks, umlauts and signs; paths do not."""
    folder = tmp_path / "cards of jürgen#1"

    (folder / "cards").mkdir(parents=True)

    for name in ("h+x~1.pt", "ä b.pt", "100%20.pt"):
        shutil.copy(FAIRSEQ / "tiny_post.pt", folder / "cards" / name)

    described_by = {"model_family": "hubert", "model_arch": "base", "model_config_overrides": TINY}

    paths = {
        "relative": "h+x~1.pt",
        "umlaut": "ä b.pt",
        "percent": "100%20.pt",
        "absolute": str(folder / "cards/ä b.pt"),
        "address": f"file://{folder / 'cards/ä b.pt'}",
        "quoted": (folder / "cards/h+x~1.pt").as_uri(),
    }

    missing = {"name": "missing", **described_by, "checkpoint": "nö thing.pt"}

    results = run_cards(folder, [{"name": n, **described_by, "checkpoint": p} for n, p in paths.items()] + [missing])

    for name in paths:
        assert results[name].startswith("LOADED HubertModel"), results[name]
        assert results[f"{name}/fairseq2"].startswith("LOADED HubertModel"), results[f"{name}/fairseq2"]

    assert f"there is no '{folder / 'cards/nö thing.pt'}'" in results["missing"]


def test_without_a_connection_the_file_and_its_place_are_named(tmp_path: Path) -> None:
    url = "https://localhost:1/models/hubert.pt"

    card = {"name": "far_card", "model_family": "hubert", "checkpoint": url}

    results = run_cards(tmp_path, [card], ["far_card", "far_cart", url])

    assert "cannot be downloaded" in results["far_card"] and url in results["far_card"]

    place = results["far_card"].partition("put the file into the folder '")[2].partition("'")[0]

    assert Path(place).is_relative_to(tmp_path / "cache")

    assert url in results[url] and place in results[url]

    assert "Did you mean 'far_card'" in results["far_cart"]

    # Done as told, it works: the file is in that place.
    Path(place).mkdir(parents=True)

    shutil.copy(FAIRSEQ / "tiny_post.pt", Path(place) / "hubert.pt")

    results = run_cards(tmp_path, [card], ["far_card"])

    assert results["far_card"].startswith("LOADED HubertModel")


@pytest.mark.parametrize("address", ["s3://bucket/hubert.pt", "ftp://example.org/hubert.pt"])
def test_addresses_that_cannot_be_fetched_are_told(address: str) -> None:
    with pytest.raises(CheckpointError, match=f"is at '{address}', but only file, hg, http, https addresses can be"):
        fetch_uri(Uri.parse(address), "The checkpoint")


@pytest.mark.parametrize("repo", ["owner", "owner/thing/model.safetensors"])
def test_hub_addresses_that_name_no_repository_are_told(repo: str, tmp_path: Path) -> None:
    card = {"name": "far_card", "model_family": "hubert", "checkpoint": f"hg://{repo}"}

    result = run_cards(tmp_path, [card], ["far_card"])["far_card"]

    assert f"is at 'hg://{repo}', but an address on the Hugging Face hub must be 'hg://OWNER/NAME'" in result


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hugging Face hub, and no connection."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    return tmp_path


def test_hub_id_without_a_connection_is_answered_with_what_to_fetch(hub_cache: Path) -> None:
    with pytest.raises(CheckpointError) as info:
        load_hubert("some-owner/some-hubert")

    for phrase in (
        "'some-owner/some-hubert' is neither a folder, nor a file, nor the name of an asset card",
        "cannot be downloaded",
        "config.json",
        "pytorch_model.bin",
        "give `load_hubert` the path of that folder",
    ):
        assert phrase in str(info.value)


def test_hub_repository_in_the_cache_is_used_without_a_connection(hub_cache: Path) -> None:
    """The layout of Hugging Face's cache: a folder for each revision, and a file that says which one `main` is."""
    repo = hub_cache / "models--some-owner--some-hubert"

    shutil.copytree(DATA / "transformers/hf_group_ctc", repo / "snapshots/abc123")

    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("abc123")

    for source in ("some-owner/some-hubert", "hg://some-owner/some-hubert"):
        assert load_hubert(source).config.num_layers == 3
        assert load_hubert_ctc(source).config.vocab_size == 13


def test_cards_are_in_fairseq2s_own_list() -> None:
    store = get_dependency_resolver().resolve(AssetStore)

    for name in [*PUBLIC, "hubert_base_ls960_l9_km500"]:
        assert isinstance(store.maybe_retrieve_card(name), AssetCard), name
